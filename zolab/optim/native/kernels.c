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

#include "masks.h"
#include "noise.h"
#include "sparse.h"
#include "storage.h"

#define ABI 2

enum { STREAM_Z = 0, STREAM_ROUNDING = 1 };

typedef struct {
    double a;         /* coefficient of z */
    double scale;     /* factor on the weights first */
    uint64_t seed;    /* Philox key */
    const float *z;   /* z of these weights if it was kept, else NULL */
    int32_t stochastic;
} Term;

static void scale32(float *w, float s, int n) {
    for (int i = 0; i < n; i++) w[i] *= s;
}

static void axpy32(float *restrict w, const float *restrict z, float a, int n) {
    for (int i = 0; i < n; i++) w[i] = z[i] * a + w[i];
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
DEFINE_SELECT(select32, uint32_t)
DEFINE_SELECT(select64, uint64_t)

/* Noise of one (seed, tile), made when it is first asked for. */
typedef struct {
    int kind;
    uint32_t pid;
    const float *table;
    uint64_t z_seed, word_seed;
    int has_z, has_words;
    const uint8_t *live;   /* elements of the tile that z is needed of; NULL: all */
    const uint16_t *index; /* their places, when only they are worked on; else NULL */
    float z[TILE];
    uint32_t words[TILE + 4]; /* a tile may begin and end within a counter */
} Source;

static const float *direction(Source *source, const float *kept, uint64_t seed, Tile tile) {
    if (kept != NULL && source->index == NULL)
        return kept + tile.at;
    if (kept != NULL) {
        for (int i = 0; i < tile.n; i++) source->z[i] = kept[tile.at + source->index[i]];
        source->has_z = 0;
        return source->z;
    }
    if (source->has_z && source->z_seed == seed)
        return source->z;
    if (source->index != NULL)
        noise_places(
            source->kind, source->z, tile.first, source->index, tile.n, seed, source->pid,
            source->table
        );
    else if (source->live == NULL)
        noise_tile(
            source->kind, source->z, tile.first, tile.n, seed, source->pid, STREAM_Z, source->table
        );
    else
        noise_tile_live(
            source->kind, source->z, tile.first, tile.n, seed, source->pid, source->table,
            source->live
        );
    source->has_z = 1;
    source->z_seed = seed;
    return source->z;
}

static const uint32_t *rounding(Source *source, uint64_t seed, Tile tile) {
    const int skip = (int)(tile.first % 4);
    if (source->index != NULL) {
        if (!source->has_words || source->word_seed != seed)
            words_places(
                source->words, tile.first, source->index, tile.n, seed, source->pid,
                STREAM_ROUNDING
            );
        source->has_words = 1;
        source->word_seed = seed;
        return source->words;
    }
    if (!source->has_words || source->word_seed != seed)
        block_words(
            source->words, tile.first / 4, (skip + tile.n + 3) / 4, seed, source->pid,
            STREAM_ROUNDING
        );
    source->has_words = 1;
    source->word_seed = seed;
    return source->words + skip;
}

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
        for (int part = 0; part < 2; part++) {
            if (part == 0 ? t->scale == 1.0 : t->a == 0.0)
                continue;
            if (unrounded)
                round16(dtype, w, tile.n);
            if (part == 0)
                scale32(w, (float)t->scale, tile.n);
            else
                axpy32(w, direction(source, t->z, t->seed, tile), (float)t->a, tile.n);
            if (narrow && t->stochastic)
                stochastic16(dtype, w, rounding(source, t->seed, tile), tile.n);
            unrounded = narrow;
        }
    }
}

/* The entry points. Pointers are to element `offset` of the parameter, kept directions as well. */

int32_t zo_abi(void) {
    return ABI;
}

int32_t zo_tile(void) {
    return TILE;
}

/* Four words of one counter, for comparison with the published answers. */
void zo_philox(uint64_t block, uint64_t seed, uint32_t pid, uint32_t stream, uint32_t *out) {
    block_words(out, block, 1, seed, pid, stream);
}

/* out[begin .. end] = elements offset + begin .. offset + end of a stream. */
void zo_fill(
    int32_t kind, float *out, int64_t begin, int64_t end, uint64_t offset, uint64_t seed,
    uint32_t pid, uint32_t stream, const float *table
) {
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end))
        noise_tile(kind, out + tile.at, tile.first, tile.n, seed, pid, stream, table);
}

/* out[begin .. end][width] = rows index[begin .. end] of a parameter that is `width` wide. */
void zo_rows(
    int32_t kind, float *out, const int64_t *index, int64_t begin, int64_t end, int64_t width,
    uint64_t seed, uint32_t pid, uint32_t stream, const float *table
) {
    for (int64_t row = begin; row < end; row++)
        zo_fill(
            kind, out + row * width, 0, width, (uint64_t)(index[row] * width), seed, pid, stream,
            table
        );
}

/* Terms on a few weights of a tile, at source->index. */
static void part_few(
    Source *source, int dtype, void *weight, Tile tile, const Term *terms, int count
) {
    const uint16_t *at = source->index;
    const int n = tile.n;
    if (dtype == FLOAT64) {
        double *w = (double *)weight + tile.at, few[TILE / 8 + 1];
        for (int i = 0; i < n; i++) few[i] = w[at[i]];
        terms64(source, few, tile, terms, count);
        for (int i = 0; i < n; i++) w[at[i]] = few[i];
    } else if (dtype == FLOAT32) {
        float *w = (float *)weight + tile.at, few[TILE / 8 + 1];
        for (int i = 0; i < n; i++) few[i] = w[at[i]];
        terms32(source, dtype, few, tile, terms, count);
        for (int i = 0; i < n; i++) w[at[i]] = few[i];
    } else {
        uint16_t *w = (uint16_t *)weight + tile.at, narrow[TILE / 8 + 1];
        float few[TILE / 8 + 1];
        for (int i = 0; i < n; i++) narrow[i] = w[at[i]];
        load16(dtype, few, narrow, n);
        terms32(source, dtype, few, tile, terms, count);
        store16(dtype, narrow, few, n);
        for (int i = 0; i < n; i++) w[at[i]] = narrow[i];
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
        uint32_t u32[TILE];
        uint64_t u64[TILE];
    } work;
    uint16_t narrow[TILE];
    const size_t n = (size_t)tile.n;
    if (count == 0)
        return;
    source->has_z = source->has_words = 0;
    source->live = chosen;
    source->index = NULL;
    if (chosen != NULL) {
        uint16_t places[TILE / 8 + 32];
        int few = live_places(chosen, tile.n, places);
        if (few >= 0) {
            Tile those = {tile.first, tile.at, few};
            source->index = places;
            part_few(source, dtype, weight, those, terms, few ? count : 0);
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
        if (chosen == NULL) {
            terms32(source, dtype, w, tile, terms, count);
        } else {
            memcpy(work.f, w, n * sizeof *w);
            terms32(source, dtype, work.f, tile, terms, count);
            select32((uint32_t *)weight + tile.at, work.u32, chosen, tile.n);
        }
    } else {
        uint16_t *w = (uint16_t *)weight + tile.at;
        load16(dtype, work.f, w, tile.n);
        terms32(source, dtype, work.f, tile, terms, count);
        store16(dtype, chosen == NULL ? w : narrow, work.f, tile.n);
        if (chosen != NULL)
            select16(w, narrow, chosen, tile.n);
    }
}

/* Apply terms to weight[begin .. end]. A mask of bits begins with the parameter. */
void zo_sweep(
    int32_t kind, int32_t dtype, void *weight, const Mask *mask, int64_t begin, int64_t end,
    uint64_t offset, uint32_t pid, const Term *terms, int32_t count, const float *table
) {
    uint8_t before[TILE], after[TILE];
    Source source;
    source.kind = kind;
    source.pid = pid;
    source.table = table;
    const int split = mask->limit ? mask->split : count;
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end)) {
        if (split > 0)
            part(&source, dtype, weight, held(mask, before, tile), tile, terms, split);
        if (mask->limit) {
            decide(after, mask, dtype, weight, tile);
            hold(mask, after, tile);
            part(&source, dtype, weight, after, tile, terms + split, count - split);
        }
    }
}

/* plus, minus [begin .. end] = weight +/- eps z. */
void zo_pair(
    int32_t kind, int32_t dtype, const void *weight, const Mask *mask, int64_t begin, int64_t end,
    uint64_t offset, uint32_t pid, uint64_t seed, const float *kept, double eps, void *plus,
    void *minus, const float *table
) {
    float work[TILE], step[TILE], up[TILE], down[TILE];
    uint8_t live[TILE];
    Source source;
    source.kind = kind;
    source.pid = pid;
    source.table = table;
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end)) {
        const int n = tile.n;
        const int64_t at = tile.at;
        const uint8_t *chosen = live;
        if (mask->limit)
            decide(live, mask, dtype, weight, tile);
        else
            chosen = held(mask, live, tile);
        source.has_z = 0;
        source.live = chosen;
        source.index = NULL;
        const float *z = direction(&source, kept, seed, tile), scale = (float)eps;
        /* The specification adds a zero where the mask is off, which turns -0 into +0 in `plus`. */
        if (chosen == NULL)
            for (int i = 0; i < n; i++) step[i] = z[i] * scale;
        else
            for (int i = 0; i < n; i++) {
                float moved = z[i] * scale;
                step[i] = float_of(bits_of(moved) & (0u - (uint32_t)(chosen[i] != 0)));
            }
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
