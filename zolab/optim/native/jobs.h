/* Work in lots, shared among threads. Every entry point that works on many items takes what it is
 * asked and a range of them, and items of different ranges have no memory in common: so how lots are
 * cut changes no bit, and nobody waits between two of them. */
#ifndef ZOLAB_JOBS_H
#define ZOLAB_JOBS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    void (*run)(const void *asked, int64_t begin, int64_t end);
    const void *asked;
    int64_t count;  /* items */
    int64_t unit;   /* a range begins at a multiple of this */
    int64_t weight; /* elements of an item, by which lots are shared out */
} Lot;

/* The caller's own OpenMP: a second one would have its threads wait for the same cores. */
typedef struct {
    void (*parallel)(void (*run)(void *), void *asked, unsigned threads, unsigned flags);
    int (*number)(void);
    int (*threads)(void);
} Team;

typedef struct {
    const Lot *lots;
    int32_t count;
} Lots;

static Team team;

/* Items of a lot that lie before element `at` of all lots, where those before it have `done`. */
static int64_t items_before(const Lot *lot, int64_t done, int64_t at) {
    const int64_t items = at <= done ? 0 : (at - done) / lot->weight;
    return items >= lot->count ? lot->count : items / lot->unit * lot->unit;
}

/* What one of some threads does of some lots. */
static void share_of(const Lot *lots, int32_t count, int32_t thread, int32_t threads) {
    int64_t total = 0, done = 0;
    for (int i = 0; i < count; i++) total += lots[i].count * lots[i].weight;
    const int64_t from = total / threads * thread;
    const int64_t to = thread + 1 == threads ? total : total / threads * (thread + 1);
    for (int i = 0; i < count && done < to; done += lots[i].count * lots[i].weight, i++) {
        const int64_t begin = items_before(lots + i, done, from);
        const int64_t end = items_before(lots + i, done, to);
        if (begin < end)
            lots[i].run(lots[i].asked, begin, end);
    }
}

static void in_team(void *asked) {
    const Lots *lots = asked;
    share_of(lots->lots, lots->count, team.number(), team.threads());
}

#endif
