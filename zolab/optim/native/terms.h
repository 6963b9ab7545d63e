/* What a sweep and a pair do to one tile of weights. */
#ifndef ZOLAB_TERMS_H
#define ZOLAB_TERMS_H

#include "few.h"
#include "masks.h"
#include "noise.h"
#include "source.h"
#include "sparse.h"
#include "steps.h"
#include "storage.h"

typedef struct {
    double a;         /* coefficient of z, or of the move of a step */
    double scale;     /* factor on the weights first */
    uint64_t seed;    /* Philox key */
    const float *z;   /* z of these weights if it was kept, else NULL */
    int32_t stochastic;
    const Step *step; /* what takes the place of z, NULL for z itself */
} Term;

static int has_step(const Term *terms, int count) {
    int found = 0;
    for (int i = 0; i < count; i++) found |= terms[i].step != NULL;
    return found;
}

static void scale32(float *w, float s, int n) {
    for (int i = 0; i < n; i++) w[i] *= s;
}

static void axpy32(float *restrict w, const float *restrict z, float a, int n) {
    for (int i = 0; i < n; i++) w[i] = z[i] * a + w[i];
}

/* The same where a mask is set; no bit of the others changes. */
static void scale32_live(float *restrict w, const uint8_t *restrict live, float s, int n) {
    for (int i = 0; i < n; i++) w[i] = live[i] ? w[i] * s : w[i];
}

static void axpy32_live(
    float *restrict w, const uint8_t *restrict live, const float *restrict z, float a, int n
) {
    int i = 0;
#ifdef __AVX512BW__
    const __m512 by = _mm512_set1_ps(a);
    for (; i + 64 <= n; i += 64) {
        const __m512i bytes = _mm512_loadu_si512(live + i);
        const uint64_t set = _mm512_test_epi8_mask(bytes, bytes);
        for (int j = 0; j < 64; j += 16) {
            const __m512 was = _mm512_loadu_ps(w + i + j);
            const __m512 step = _mm512_mul_ps(_mm512_loadu_ps(z + i + j), by);
            _mm512_storeu_ps(w + i + j, _mm512_mask_add_ps(was, (__mmask16)(set >> j), step, was));
        }
    }
#endif
    for (; i < n; i++) {
        const float sum = z[i] * a + w[i];
        w[i] = live[i] ? sum : w[i];
    }
}

/* out = z * a where a mask is set, else 0. */
static void times_live(
    float *restrict out, const uint8_t *restrict live, const float *restrict z, float a, int n
) {
    int i = 0;
#ifdef __AVX512BW__
    const __m512 by = _mm512_set1_ps(a);
    for (; i + 64 <= n; i += 64) {
        const __m512i bytes = _mm512_loadu_si512(live + i);
        const uint64_t set = _mm512_test_epi8_mask(bytes, bytes);
        for (int j = 0; j < 64; j += 16)
            _mm512_storeu_ps(
                out + i + j,
                _mm512_maskz_mul_ps((__mmask16)(set >> j), _mm512_loadu_ps(z + i + j), by)
            );
    }
#endif
    for (; i < n; i++) {
        const float step = z[i] * a;
        out[i] = float_of(bits_of(step) & (0u - (uint32_t)(live[i] != 0)));
    }
}

static void scale64(double *w, double s, int n) {
    for (int i = 0; i < n; i++) w[i] *= s;
}

static void axpy64(double *restrict w, const float *restrict z, double a, int n) {
    for (int i = 0; i < n; i++) w[i] = (double)z[i] * a + w[i];
}

/* to[i] = from[i] where the mask is set, bit by bit. */
#define DEFINE_SELECT(NAME, TYPE)                                                                  \
    static void NAME(                                                                              \
        TYPE *restrict to, const TYPE *restrict from, const uint8_t *restrict mask, int n          \
    ) {                                                                                            \
        for (int i = 0; i < n; i++) {                                                              \
            TYPE chosen = (TYPE)(0 - (TYPE)(mask[i] != 0));                                        \
            to[i] = (TYPE)((from[i] & chosen) | (to[i] & (TYPE)~chosen));                          \
        }                                                                                          \
    }
DEFINE_SELECT(select16, uint16_t)
DEFINE_SELECT(select64, uint64_t)

/* One tile of float64 weights. */
static void terms64(Source *source, double *w, Tile tile, const Term *terms, int count) {
    for (const Term *t = terms; t < terms + count; t++) {
        if (t->scale != 1.0)
            scale64(w, t->scale, tile.n);
        if (t->a != 0.0)
            axpy64(w, direction(source, t->z, t->seed, tile), t->a, tile.n);
    }
}

/* One tile in float32. For 16-bit weights the values after each write are those of the dtype, except
 * that the last rounding to nearest is left to the store. */
static void terms32(
    Source *source, int dtype, float *w, Tile tile, const Term *terms, int count
) {
    const int narrow = dtype != FLOAT32;
    int unrounded = 0;
    for (const Term *t = terms; t < terms + count; t++) {
        const float *move = t->step ? moved(source, t->step, tile) : NULL;
        for (int part = 0; part < 2; part++) {
            if (part == 0 ? t->scale == 1.0 : t->a == 0.0)
                continue;
            if (unrounded)
                round16(dtype, w, tile.n);
            if (part == 0)
                scale32(w, (float)t->scale, tile.n);
            else
                axpy32(
                    w, move ? move : direction(source, t->z, t->seed, tile), (float)t->a, tile.n
                );
            if (narrow && t->stochastic)
                stochastic16(dtype, w, rounding(source, t->seed, tile), tile.n);
            unrounded = narrow;
        }
    }
}

/* One tile of float32 weights, where a mask is set. */
static void terms32_live(
    Source *source, float *w, const uint8_t *live, Tile tile, const Term *terms, int count
) {
    for (const Term *t = terms; t < terms + count; t++) {
        const float *move = t->step ? moved(source, t->step, tile) : NULL;
        if (t->scale != 1.0)
            scale32_live(w, live, (float)t->scale, tile.n);
        if (t->a != 0.0)
            axpy32_live(
                w, live, move ? move : direction(source, t->z, t->seed, tile), (float)t->a, tile.n
            );
    }
}

/* Terms on a few weights of a tile, at source->index. */
static void part_few(
    Source *source, int dtype, void *weight, Tile tile, const Term *terms, int count
) {
    const uint16_t *at = source->index;
    const int n = tile.n;
    if (dtype == FLOAT64) {
        double *w = (double *)weight + tile.at, few[FEW];
        for (int i = 0; i < n; i++) few[i] = w[at[i]];
        terms64(source, few, tile, terms, count);
        for (int i = 0; i < n; i++) w[at[i]] = few[i];
    } else if (dtype == FLOAT32) {
        float *w = (float *)weight + tile.at, few[FEW];
        for (int i = 0; i < n; i++) few[i] = w[at[i]];
        terms32(source, dtype, few, tile, terms, count);
        for (int i = 0; i < n; i++) w[at[i]] = few[i];
    } else {
        uint16_t *w = (uint16_t *)weight + tile.at, narrow[FEW];
        float few[FEW];
        for (int i = 0; i < n; i++) narrow[i] = w[at[i]];
        load16(dtype, few, narrow, n);
        terms32(source, dtype, few, tile, terms, count);
        store16(dtype, narrow, few, n);
        for (int i = 0; i < n; i++) w[at[i]] = narrow[i];
    }
}

/* Terms on the weights of a tile at some places, however many. */
static void part_places(
    Source *source, int dtype, void *weight, const uint16_t *places, int n, Tile tile,
    const Term *terms, int count
) {
    for (int done = 0; done < n; done += FEW) {
        Tile those = {tile.first, tile.at, n - done < FEW ? n - done : FEW};
        source->has_z = source->has_words = 0;
        source->index = places + done;
        part_few(source, dtype, weight, those, terms, count);
    }
}

/* Terms on one tile of weights; `chosen` has a byte for each of its elements, or is NULL. */
static void part(
    Source *source, int dtype, void *weight, const uint8_t *chosen, Tile tile, const Term *terms,
    int count
) {
    union {
        float f[TILE];
        double d[TILE];
        uint64_t u64[TILE];
    } work;
    uint16_t narrow[TILE];
    const size_t n = (size_t)tile.n;
    if (count == 0)
        return;
    source->has_z = source->has_words = 0;
    source->live = chosen;
    source->index = NULL;
    /* Moments go on where the mask is off, so that a step works on whole tiles. */
    if (chosen != NULL && !has_step(terms, count)) {
        uint16_t places[FEW + 32];
        int few = live_places(chosen, tile.n, places);
        if (few >= 0) {
            part_places(source, dtype, weight, places, few, tile, terms, count);
            return;
        }
    }
    if (dtype == FLOAT64) {
        double *w = (double *)weight + tile.at;
        if (chosen == NULL) {
            terms64(source, w, tile, terms, count);
        } else {
            memcpy(work.d, w, n * sizeof *w);
            terms64(source, work.d, tile, terms, count);
            select64((uint64_t *)weight + tile.at, work.u64, chosen, tile.n);
        }
    } else if (dtype == FLOAT32) {
        float *w = (float *)weight + tile.at;
        if (chosen == NULL)
            terms32(source, dtype, w, tile, terms, count);
        else
            terms32_live(source, w, chosen, tile, terms, count);
    } else {
        uint16_t *w = (uint16_t *)weight + tile.at;
        load16(dtype, work.f, w, tile.n);
        terms32(source, dtype, work.f, tile, terms, count);
        store16(dtype, chosen == NULL ? w : narrow, work.f, tile.n);
        if (chosen != NULL)
            select16(w, narrow, chosen, tile.n);
    }
}

/* A tile of `pair` where no weight moves: a zero is added, which turns -0 into +0 in `plus`. */
static void pair_still(int dtype, const void *weight, void *plus, void *minus, Tile tile) {
    const int n = tile.n;
    if (dtype == FLOAT64) {
        const double *w = (const double *)weight + tile.at;
        double *p = (double *)plus + tile.at, *m = (double *)minus + tile.at;
        for (int i = 0; i < n; i++) {
            p[i] = w[i] + 0.0;
            m[i] = w[i] - 0.0;
        }
    } else if (dtype == FLOAT32) {
        const float *w = (const float *)weight + tile.at;
        float *p = (float *)plus + tile.at, *m = (float *)minus + tile.at;
        for (int i = 0; i < n; i++) p[i] = w[i] + 0.0f;
        for (int i = 0; i < n; i++) m[i] = w[i] - 0.0f;
    } else {
        const uint16_t *w = (const uint16_t *)weight + tile.at;
        uint16_t *p = (uint16_t *)plus + tile.at, *m = (uint16_t *)minus + tile.at;
        for (int i = 0; i < n; i++) p[i] = w[i] == 0x8000u ? 0 : w[i];
        for (int i = 0; i < n; i++) m[i] = w[i];
    }
}

/* The few weights of a tile that do move. */
static void pair_few(
    int dtype, const void *weight, void *plus, void *minus, Tile tile, const uint16_t *at, int n,
    const float *z, double eps
) {
    double was[FEW], up[FEW], down[FEW]; /* of any dtype */
    for (int done = 0; done < n; done += FEW) {
        const int some = n - done < FEW ? n - done : FEW;
        few_values(dtype, weight, tile, at + done, some, z + done, eps, was, up, down);
        few_put(dtype, plus, tile, at + done, some, up);
        few_put(dtype, minus, tile, at + done, some, down);
    }
}

/* `pair` where few weights move. The noise of several tiles is made before any of them is written:
 * what it stores word by word would wait behind those writes, and its loads with it. */
static void pair_places(
    Source *source, int dtype, const void *weight, const Mask *mask, int64_t begin, int64_t end,
    uint64_t offset, const float *kept, uint64_t seed, double eps, void *plus, void *minus
) {
    enum { GROUP = 16 };
    uint16_t spare[TILE];
    float z[2 * TILE];
    const uint16_t *places[GROUP];
    Tile tiles[GROUP];
    int few[GROUP], total = 0, count = 0;
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end)) {
        tiles[count] = tile;
        places[count] = places_of(mask, spare, tile, &few[count]);
        for (int done = 0; done < few[count]; done += FEW) {
            const int rest = few[count] - done;
            Tile those = {tile.first, tile.at, rest < FEW ? rest : FEW};
            source->has_z = 0;
            source->index = places[count] + done;
            const float *made = direction(source, kept, seed, those);
            memcpy(z + total + done, made, (size_t)those.n * sizeof *z);
        }
        total += few[count];
        const int cut = places[count] == spare, last = tile.at + tile.n == end;
        if (++count < GROUP && total <= TILE && !cut && !last)
            continue;
        total = 0;
        for (int i = 0; i < count; total += few[i], i++) {
            pair_still(dtype, weight, plus, minus, tiles[i]);
            pair_few(dtype, weight, plus, minus, tiles[i], places[i], few[i], z + total, eps);
        }
        total = count = 0;
    }
}

#endif
