/* Noise and rounding words of one tile, made when they are first asked for. */
#ifndef ZOLAB_SOURCE_H
#define ZOLAB_SOURCE_H

#include "masks.h"
#include "noise.h"
#include "sparse.h"

enum { STREAM_Z = 0, STREAM_ROUNDING = 1 };

typedef struct {
    int kind;
    uint32_t pid;
    const float *table;
    uint64_t z_seed, word_seed;
    int has_z, has_words;
    const uint8_t *live;   /* elements of the tile that z is needed of; NULL: all */
    const uint16_t *index; /* their places, when only they are worked on; else NULL */
    float z[TILE];
    float move[TILE], g[TILE], m[TILE], v[TILE]; /* of a step, see steps.h */
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

#endif
