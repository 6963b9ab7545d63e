/* Native sweeps over weights on the CPU: bit for bit what zolab.optim.backend does.
 *
 * Plain C that a compiler vectorises, no intrinsics: every loop runs over independent lanes. (Hand-
 * written AVX-512 was measured at 64 ms per 100M normals, the same loops in plain C at 66.) Compile
 * with -ffp-contract=off and -fno-strict-aliasing, and never with -ffast-math.
 *
 * A tile is a run of elements that lies between two multiples of TILE, counted from the start of the
 * parameter. It stays in the first-level cache while all terms pass over it, so a sweep moves the
 * weights through memory once; and counters within a tile share their high word.
 */
#include <stddef.h>

#include "bits.h"
#include "few.h"
#include "jobs.h"
#include "masks.h"
#include "noise.h"
#include "norm.h"
#include "product.h"
#include "source.h"
#include "sparse.h"
#include "steps.h"
#include "storage.h"
#include "terms.h"
#include "thin.h"

#define ABI 12

/* The entry points. Pointers are to element `offset` of the parameter, kept directions as well.
 * Those that take a range are what lots run. */

int32_t zo_abi(void) {
    return ABI;
}

int32_t zo_tile(void) {
    return TILE;
}

/* Whose threads `zo_run` takes; NULL: nobody's. */
void zo_team(void *parallel, void *number, void *threads) {
    team.parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
    team.number = (int (*)(void))number;
    team.threads = (int (*)(void))threads;
}

/* One thread's share of some lots. */
void zo_share(const Lot *lots, int32_t count, int32_t thread, int32_t threads) {
    share_of(lots, count, thread, threads);
}

/* Lots in as many threads of the team. */
void zo_run(const Lot *lots, int32_t count, int32_t threads) {
    Lots all = {lots, count};
    if (threads > 1 && team.parallel != NULL)
        team.parallel(in_team, &all, (unsigned)threads, 0);
    else
        share_of(lots, count, 0, 1);
}

/* Four words of one counter, for comparison with the published answers. */
void zo_philox(uint64_t block, uint64_t seed, uint32_t pid, uint32_t stream, uint32_t *out) {
    block_words(out, block, 1, seed, pid, stream);
}

typedef struct {
    int32_t kind;
    uint32_t pid, stream;
    float *out;
    uint64_t offset, seed;
    const float *table;
} Fill;

/* out[begin .. end] = elements offset + begin .. offset + end of a stream. */
static void fill(const Fill *a, int64_t begin, int64_t end) {
    for (Tile tile = tile_at(a->offset, begin, end); tile.n > 0;
         tile = tile_at(a->offset, tile.at + tile.n, end))
        noise_tile(
            a->kind, a->out + tile.at, tile.first, tile.n, a->seed, a->pid, a->stream, a->table
        );
}

void zo_fill(const void *asked, int64_t begin, int64_t end) {
    fill(asked, begin, end);
}

typedef struct {
    Fill each; /* of the first row; its offset is of no use */
    const int64_t *index;
    int64_t width;
} Rows;

/* out[begin .. end][width] = rows index[begin .. end] of a parameter that is `width` wide. */
void zo_rows(const void *asked, int64_t begin, int64_t end) {
    const Rows *a = asked;
    for (int64_t row = begin; row < end; row++) {
        Fill one = a->each;
        one.out += row * a->width;
        one.offset = (uint64_t)(a->index[row] * a->width);
        fill(&one, 0, a->width);
    }
}

typedef struct {
    int32_t kind, dtype, count;
    uint32_t pid;
    void *weight;
    const Mask *mask;
    uint64_t offset;
    const Term *terms;
    const float *table;
} Sweep;

/* Apply terms to weight[begin .. end]. A mask of bits begins with the parameter. */
void zo_sweep(const void *asked, int64_t begin, int64_t end) {
    const Sweep *a = asked;
    const Mask *mask = a->mask;
    const Term *terms = a->terms;
    const int dtype = a->dtype, count = a->count;
    uint8_t before[TILE], after[TILE];
    uint16_t spare[TILE];
    Source source;
    source.kind = a->kind;
    source.pid = a->pid;
    source.table = a->table;
    const int split = mask->limit ? mask->split : count, steps = has_step(terms, count);
    const int by_bits = goes_by_bits(a->kind, dtype, mask, steps);
    for (Tile tile = tile_at(a->offset, begin, end); tile.n > 0;
         tile = tile_at(a->offset, tile.at + tile.n, end)) {
        if (by_bits && tile.n == TILE) {
            tile_by_bits(&source, dtype, a->weight, mask, tile, terms, split, count);
            continue;
        }
        if (mask->form == PLACES && !steps) {
            int few;
            const uint16_t *places = places_of(mask, spare, tile, &few);
            fetch_ahead(mask, (char *)a->weight, dtype, tile, end);
            part_places(&source, dtype, a->weight, places, few, tile, terms, count);
            continue;
        }
        if (split > 0)
            part(&source, dtype, a->weight, held(mask, before, tile), tile, terms, split);
        if (mask->limit) {
            decide(after, mask, dtype, a->weight, tile);
            hold(mask, after, tile);
            part(&source, dtype, a->weight, after, tile, terms + split, count - split);
        }
    }
}

typedef struct {
    int32_t kind, dtype;
    uint32_t pid;
    const void *weight;
    const Mask *mask;
    uint64_t offset, seed;
    const float *kept;
    double eps;
    void *plus, *minus;
    const float *table;
} Pair;

/* plus, minus [begin .. end] = weight +/- eps z. */
void zo_pair(const void *asked, int64_t begin, int64_t end) {
    const Pair *a = asked;
    const Mask *mask = a->mask;
    const void *weight = a->weight;
    void *plus = a->plus, *minus = a->minus;
    const int dtype = a->dtype;
    const double eps = a->eps;
    float work[TILE], step[TILE], up[TILE], down[TILE];
    uint8_t live[TILE];
    Source source;
    source.kind = a->kind;
    source.pid = a->pid;
    source.table = a->table;
    if (mask->form == PLACES) {
        pair_places(
            &source, dtype, weight, mask, begin, end, a->offset, a->kept, a->seed, eps, plus, minus
        );
        return;
    }
    const int by_bits = pairs_by_bits(a->kind, dtype, mask);
    for (Tile tile = tile_at(a->offset, begin, end); tile.n > 0;
         tile = tile_at(a->offset, tile.at + tile.n, end)) {
        const int n = tile.n;
        const int64_t at = tile.at;
        const uint8_t *chosen = live;
        source.has_z = 0;
        source.index = NULL;
        if (by_bits && n == TILE) {
            source.live = NULL;
            pair_by_bits(
                (float *)plus + at, (float *)minus + at, (const float *)weight + at,
                direction(&source, a->kept, a->seed, tile), (float)eps, mask, at
            );
            continue;
        }
        if (mask->limit)
            decide(live, mask, dtype, weight, tile);
        else
            chosen = held(mask, live, tile);
        source.live = chosen;
        const float *z = direction(&source, a->kept, a->seed, tile), scale = (float)eps;
        /* The specification adds a zero where the mask is off, which turns -0 into +0 in `plus`. */
        if (chosen == NULL)
            for (int i = 0; i < n; i++) step[i] = z[i] * scale;
        else
            times_live(step, chosen, z, scale, n);
        if (dtype == FLOAT64) {
            const double *w = (const double *)weight + at;
            double *p = (double *)plus + at, *m = (double *)minus + at;
            /* Wide weights take the product in float64 as well. */
            for (int i = 0; i < n; i++) {
                const double move = chosen == NULL || chosen[i] ? (double)z[i] * eps : 0.0;
                p[i] = w[i] + move;
                m[i] = w[i] - move;
            }
        } else if (dtype == FLOAT32) {
            const float *w = (const float *)weight + at;
            float *p = (float *)plus + at, *m = (float *)minus + at;
            for (int i = 0; i < n; i++) p[i] = w[i] + step[i];
            for (int i = 0; i < n; i++) m[i] = w[i] - step[i];
        } else {
            load16(dtype, work, (const uint16_t *)weight + at, n);
            for (int i = 0; i < n; i++) {
                up[i] = work[i] + step[i];
                down[i] = work[i] - step[i];
            }
            store16(dtype, (uint16_t *)plus + at, up, n);
            store16(dtype, (uint16_t *)minus + at, down, n);
        }
    }
}

/* Perturb a few places of a weight; it is told what they were. */
void zo_few(const void *asked, int64_t begin, int64_t end) {
    few_of((Few *)(uintptr_t)asked, begin, end);
}

/* Values into a few places of a weight. */
void zo_put(const void *asked, int64_t begin, int64_t end) {
    put(asked, begin, end);
}

int32_t zo_max_rank(void) {
    return MAX_RANK;
}

typedef struct {
    float *out;
    Left left;
    const float *right;
    int64_t width;
    int32_t rank;
} Product;

/* out[begin .. end][width] = rows of left @ right; left has `rank` columns, right as many rows. */
void zo_product(const void *asked, int64_t begin, int64_t end) {
    const Product *a = asked;
    double wide[MAX_RANK * ROWS];
    for (int64_t row = begin; row < end; row += ROWS) {
        const int rows = (int)(end - row < ROWS ? end - row : ROWS);
        const Use use = {a->out + row * a->width, a->width, NULL};
        widen(wide, &a->left, row, rows, a->rank);
        panel(&use, wide, a->right, a->width, a->rank, rows, a->width);
    }
}

/* One term on some rows of a weight; the product goes by way of the cache. */
static void term_product(
    Source *source, int dtype, char *weight, int64_t row, int rows, int64_t width, Term term,
    const double *wide, const float *right, int rank
) {
    float z[ROWS * PANEL];
    const Use use = {z, PANEL, NULL};
    const int size = dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2;
    for (int64_t at = 0; at < width; at += PANEL) {
        const int n = (int)(width - at < PANEL ? width - at : PANEL);
        if (term.a != 0.0)
            panel(&use, wide, right + at, width, rank, rows, n);
        for (int i = 0; i < rows; i++) {
            const int64_t first = (row + i) * width + at;
            const Tile tile = {(uint64_t)first, 0, n};
            term.z = z + i * PANEL;
            part(source, dtype, weight + size * first, NULL, tile, &term, 1);
        }
    }
}

typedef struct {
    int32_t dtype, count, rank;
    uint32_t pid;
    void *weight;
    int64_t width;
    const Term *terms;
    const Left *left; /* of each term */
    const float *const *right;
} SweepProduct;

/* Apply terms to rows begin .. end of a weight `width` wide; z of each is left @ right, see above. */
void zo_sweep_product(const void *asked, int64_t begin, int64_t end) {
    const SweepProduct *a = asked;
    const int64_t width = a->width;
    double wide[MAX_RANK * ROWS];
    Source source;
    source.pid = a->pid;
    for (int64_t row = begin; row < end; row += ROWS) {
        const int rows = (int)(end - row < ROWS ? end - row : ROWS);
        for (int t = 0; t < a->count; t++) {
            const Term *term = a->terms + t;
            if (term->a != 0.0)
                widen(wide, a->left + t, row, rows, a->rank);
            if (term->a != 0.0 && a->dtype == FLOAT32) {
                const Use use = {(float *)a->weight + row * width, width, term};
                panel(&use, wide, a->right[t], width, a->rank, rows, width);
            } else {
                term_product(
                    &source, a->dtype, a->weight, row, rows, width, *term, wide, a->right[t],
                    a->rank
                );
            }
        }
    }
}

typedef struct {
    float *out;
    const float *left;
    int64_t m;
    int32_t rank;
} Turn;

/* Columns begin .. end of out (rank, m): a left factor by columns. */
void zo_turn(const void *asked, int64_t begin, int64_t end) {
    const Turn *a = asked;
    for (int k = 0; k < a->rank; k++)
        for (int64_t i = begin; i < end; i++) a->out[k * a->m + i] = a->left[i * a->rank + k];
}
