/* Sweeps over whole tiles under a mask that is held as bits, 64 of them a word: no byte is made of
 * any. What is done to the weights is what terms.h does. */
#ifndef ZOLAB_BITS_H
#define ZOLAB_BITS_H

#include "masks.h"
#include "terms.h"

#define WORDS (TILE / 64)

/* Whether a sweep can go this way. A counter of gauss holds so few elements that those nobody needs
 * are left out, which is done by bytes; moments go on where the mask is off. */
static int goes_by_bits(int kind, int dtype, const Mask *mask, int steps) {
#ifdef __AVX512BW__
    return mask->form == BITS && kind != GAUSS && dtype != FLOAT64 && !steps;
#else
    (void)kind, (void)dtype, (void)mask, (void)steps;
    return 0;
#endif
}

#ifdef __AVX512BW__
/* The mask of a tile anew, from its weights. */
static void decide_bits(uint8_t *bits, const Mask *mask, int dtype, const void *weight, Tile tile) {
    float wide[TILE];
    const float *w = (const float *)weight + tile.at;
    if (dtype != FLOAT32) {
        load16(dtype, wide, (const uint16_t *)weight + tile.at, TILE);
        w = wide;
    }
    for (int i = 0; i < WORDS; i++) {
        const uint64_t set = within(w + 64 * i, mask);
        memcpy(bits + 8 * i, &set, 8);
    }
}

static void axpy32_bits(
    float *restrict w, const uint64_t *restrict set, const float *restrict z, float scale, float a
) {
    const __m512 by = _mm512_set1_ps(a), times = _mm512_set1_ps(scale);
    for (int i = 0; i < TILE; i += 16) {
        const __mmask16 live = (__mmask16)(set[i / 64] >> (i % 64));
        __m512 was = _mm512_loadu_ps(w + i);
        was = _mm512_mask_mul_ps(was, live, was, times); /* by 1 changes nothing */
        if (z != NULL)
            was = _mm512_mask_add_ps(was, live, _mm512_mul_ps(_mm512_loadu_ps(z + i), by), was);
        _mm512_storeu_ps(w + i, was);
    }
}

/* Terms on a tile, more than a few of whose weights move. */
static void part_bits(
    Source *source, int dtype, void *weight, const uint64_t *set, Tile tile, const Term *terms,
    int count
) {
    float work[TILE];
    uint16_t narrow[TILE];
    source->has_z = source->has_words = 0;
    source->live = NULL;
    source->index = NULL;
    if (dtype == FLOAT32) {
        for (const Term *t = terms; t < terms + count; t++)
            axpy32_bits(
                (float *)weight + tile.at, set,
                t->a == 0.0 ? NULL : direction(source, t->z, t->seed, tile), (float)t->scale,
                (float)t->a
            );
        return;
    }
    uint16_t *w = (uint16_t *)weight + tile.at;
    load16(dtype, work, w, TILE);
    terms32(source, dtype, work, tile, terms, count);
    store16(dtype, narrow, work, TILE);
    for (int i = 0; i < TILE; i += 32)
        _mm512_mask_storeu_epi16(
            w + i, (__mmask32)(set[i / 64] >> (i % 64)), _mm512_loadu_si512(narrow + i)
        );
}

static void terms_bits(
    Source *source, int dtype, void *weight, const Mask *mask, Tile tile, const Term *terms,
    int count
) {
    uint64_t set[WORDS];
    uint8_t bytes[TILE];
    int live = 0;
    if (count == 0)
        return;
    memcpy(set, mask->at + tile.at / 8, sizeof set);
    for (int i = 0; i < WORDS; i++) live += __builtin_popcountll(set[i]);
    if (8 * live > TILE)
        part_bits(source, dtype, weight, set, tile, terms, count);
    else
        part(source, dtype, weight, held(mask, bytes, tile), tile, terms, count);
}

/* One whole tile of a sweep: terms, a new mask where there is a limit, and terms under it. */
static void tile_by_bits(
    Source *source, int dtype, void *weight, const Mask *mask, Tile tile, const Term *terms,
    int split, int count
) {
    terms_bits(source, dtype, weight, mask, tile, terms, split);
    if (mask->limit) {
        decide_bits(mask->at + tile.at / 8, mask, dtype, weight, tile);
        terms_bits(source, dtype, weight, mask, tile, terms + split, count - split);
    }
}
#else
static void tile_by_bits(
    Source *source, int dtype, void *weight, const Mask *mask, Tile tile, const Term *terms,
    int split, int count
) {
    (void)source, (void)dtype, (void)weight, (void)mask, (void)tile, (void)terms, (void)split;
    (void)count;
}
#endif

#endif
