/* Few weights that move, exchanged in the weights' own memory: a module computes with what is there
 * instead of with copies nearly all of which would be what it was copied from. */
#ifndef ZOLAB_FEW_H
#define ZOLAB_FEW_H

#include "masks.h"
#include "source.h"

typedef struct {
    int32_t kind, dtype;
    uint32_t pid;
    void *weight;
    const Mask *mask; /* PLACES */
    uint64_t offset, seed;
    double eps;
    void *was, *now, *then; /* of the dtype, from the first place in the tile of `offset` on */
    const float *table;
    int32_t begun; /* set by each thread that begins: from then on `was` is to be put back */
} Few;

/* A tile's places, how many, and where their values are. */
typedef struct {
    const uint16_t *at;
    int count;
    int64_t first;
} Spot;

static Spot spot_of(const Mask *mask, uint64_t offset, uint16_t *spare, Tile tile) {
    const uint64_t number = tile.first / TILE;
    const int skip = (int)(tile.first % TILE);
    const uint16_t *all = (const uint16_t *)mask->at + mask->starts[number];
    const int n = mask->starts[number + 1] - mask->starts[number];
    Spot spot = {NULL, 0, mask->starts[number] - mask->starts[offset / TILE]};
    for (int i = 0; skip != 0 && i < n && all[i] < skip; i++) spot.first++;
    spot.at = places_of(mask, spare, tile, &spot.count);
    return spot;
}

/* was, plus, minus [i] = w, w + eps z, w - eps z at n <= FEW places of a tile. */
static void few_values(
    int dtype, const void *weight, Tile tile, const uint16_t *at, int n, const float *z, double eps,
    void *was, void *plus, void *minus
) {
    const float scale = (float)eps;
    if (dtype == FLOAT64) {
        const double *from = (const double *)weight + tile.at;
        double *w = was, *p = plus, *m = minus;
        for (int i = 0; i < n; i++) {
            w[i] = from[at[i]];
            p[i] = w[i] + (double)z[i] * eps;
            m[i] = w[i] - (double)z[i] * eps;
        }
    } else if (dtype == FLOAT32) {
        const float *from = (const float *)weight + tile.at;
        float *w = was, *p = plus, *m = minus;
        for (int i = 0; i < n; i++) {
            w[i] = from[at[i]];
            p[i] = w[i] + z[i] * scale;
            m[i] = w[i] - z[i] * scale;
        }
    } else {
        const uint16_t *from = (const uint16_t *)weight + tile.at;
        float wide[FEW], up[FEW], down[FEW];
        for (int i = 0; i < n; i++) ((uint16_t *)was)[i] = from[at[i]];
        load16(dtype, wide, was, n);
        for (int i = 0; i < n; i++) {
            up[i] = wide[i] + z[i] * scale;
            down[i] = wide[i] - z[i] * scale;
        }
        store16(dtype, plus, up, n);
        store16(dtype, minus, down, n);
    }
}

/* Values into places of a tile. */
static void few_put(
    int dtype, void *weight, Tile tile, const uint16_t *at, int n, const void *values
) {
    if (dtype == FLOAT64) {
        const double *from = values;
        double *w = (double *)weight + tile.at;
        for (int i = 0; i < n; i++) w[at[i]] = from[i];
    } else if (dtype == FLOAT32) {
        const float *from = values;
        float *w = (float *)weight + tile.at;
        for (int i = 0; i < n; i++) w[at[i]] = from[i];
    } else {
        const uint16_t *from = values;
        uint16_t *w = (uint16_t *)weight + tile.at;
        for (int i = 0; i < n; i++) w[at[i]] = from[i];
    }
}

static int size_of(int dtype) {
    return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2;
}

/* Of the places: what they were, what they are now, w + eps z, and are to be then, w - eps z. */
static void few_of(Few *a, int64_t begin, int64_t end) {
    uint16_t spare[TILE];
    Source source;
    source.kind = a->kind;
    source.pid = a->pid;
    source.table = a->table;
    __atomic_store_n(&a->begun, 1, __ATOMIC_RELAXED);
    for (Tile tile = tile_at(a->offset, begin, end); tile.n > 0;
         tile = tile_at(a->offset, tile.at + tile.n, end)) {
        const Spot spot = spot_of(a->mask, a->offset, spare, tile);
        fetch_ahead(a->mask, a->weight, a->dtype, tile, end);
        for (int done = 0; done < spot.count; done += FEW) {
            const int rest = spot.count - done;
            Tile those = {tile.first, tile.at, rest < FEW ? rest : FEW};
            source.has_z = 0;
            source.index = spot.at + done;
            const float *z = direction(&source, NULL, a->seed, those);
            const int64_t to = (spot.first + done) * size_of(a->dtype);
            char *now = (char *)a->now + to;
            few_values(
                a->dtype, a->weight, tile, source.index, those.n, z, a->eps, (char *)a->was + to,
                now, (char *)a->then + to
            );
            few_put(a->dtype, a->weight, tile, source.index, those.n, now);
        }
    }
}

typedef struct {
    int32_t dtype;
    void *weight;
    const Mask *mask;
    uint64_t offset;
    const void *values; /* as `was` */
} Put;

/* Ask for what is written two tiles on, as what will be: each line by itself, since those are in some
 * cache still, often another core's, and asked for to be read they would be asked for twice. Always
 * inline: see `fetch_ahead`. */
__attribute__((always_inline)) static inline void own_ahead(
    const Put *a, Tile tile, int64_t end
) {
    const uint64_t number = tile.first / TILE + 2;
    const int64_t at = tile.at - (int64_t)(tile.first % TILE) + 2 * TILE;
    const uint16_t *places = (const uint16_t *)a->mask->at;
    const int size = size_of(a->dtype);
    if (at + TILE > end)
        return;
    for (int i = a->mask->starts[number]; i < a->mask->starts[number + 1]; i++)
        __builtin_prefetch((char *)a->weight + size * (at + places[i]), 1);
}

static void put(const Put *a, int64_t begin, int64_t end) {
    uint16_t spare[TILE];
    for (Tile tile = tile_at(a->offset, begin, end); tile.n > 0;
         tile = tile_at(a->offset, tile.at + tile.n, end)) {
        const Spot spot = spot_of(a->mask, a->offset, spare, tile);
        own_ahead(a, tile, end);
        const char *from = (const char *)a->values + spot.first * size_of(a->dtype);
        few_put(a->dtype, a->weight, tile, spot.at, spot.count, from);
    }
}

#endif
