/* Sweeps over whole tiles under a mask that is held as bits, 64 of them a word, or decided and held
 * nowhere: no byte is made of any. What is done to the weights is what terms.h does. */
#ifndef ZOLAB_BITS_H
#define ZOLAB_BITS_H

#include "masks.h"
#include "terms.h"

#define WORDS (TILE / 64)

/* Whether a sweep can go this way. A counter of gauss holds so few elements that those nobody needs
 * are left out, which is done by bytes; moments go on where the mask is off. */
static int goes_by_bits(int kind, int dtype, const Mask *mask, int steps) {
#ifdef __AVX512BW__
    const int bits = mask->form == BITS || (mask->at == NULL && mask->limit);
    return bits && kind != GAUSS && dtype != FLOAT64 && !steps;
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
    Source *source, int dtype, void *weight, uint8_t *bits, Tile tile, const Term *terms, int count
) {
    const Mask here = {bits, NULL, BITS, 0, 0.0, 0};
    const Tile from_there = {tile.first, 0, tile.n};
    uint64_t set[WORDS];
    uint8_t bytes[TILE];
    int live = 0;
    if (count == 0)
        return;
    memcpy(set, bits, sizeof set);
    for (int i = 0; i < WORDS; i++) live += __builtin_popcountll(set[i]);
    if (8 * live > TILE)
        part_bits(source, dtype, weight, set, tile, terms, count);
    else
        part(source, dtype, weight, held(&here, bytes, from_there), tile, terms, count);
}

/* A term under a limit that is held nowhere, in one pass over float32 weights: looked at before z is
 * made, they would be waited for. */
static void limited_by_bits(
    Source *source, float *restrict w, const Mask *mask, Tile tile, const Term *term
) {
    const __m512 by = _mm512_set1_ps((float)term->a), times = _mm512_set1_ps((float)term->scale);
    source->has_z = 0;
    source->live = NULL;
    source->index = NULL;
    const float *z = term->a == 0.0 ? NULL : direction(source, term->z, term->seed, tile);
    for (int i = 0; i < TILE; i += 16) {
        __m512 was = _mm512_loadu_ps(w + i);
        const __mmask16 live = within16(was, mask);
        was = _mm512_mask_mul_ps(was, live, was, times); /* by 1 changes nothing */
        if (z != NULL)
            was = _mm512_mask_add_ps(was, live, _mm512_mul_ps(_mm512_loadu_ps(z + i), by), was);
        _mm512_storeu_ps(w + i, was);
    }
}

/* One whole tile of a sweep: terms, a new mask where there is a limit, and terms under it. */
static void tile_by_bits(
    Source *source, int dtype, void *weight, const Mask *mask, Tile tile, const Term *terms,
    int split, int count
) {
    uint8_t spare[TILE / 8], *bits = mask->at == NULL ? spare : mask->at + tile.at / 8;
    if (dtype == FLOAT32 && mask->at == NULL && mask->limit && split == 0 && count == 1) {
        limited_by_bits(source, (float *)weight + tile.at, mask, tile, terms);
        return;
    }
    if (mask->at != NULL)
        terms_bits(source, dtype, weight, bits, tile, terms, split);
    else if (split > 0)
        part(source, dtype, weight, NULL, tile, terms, split);
    if (mask->limit) {
        decide_bits(bits, mask, dtype, weight, tile);
        terms_bits(source, dtype, weight, bits, tile, terms + split, count - split);
    }
}

/* Whether `pair_by_bits` is for a pair; see `goes_by_bits`. */
static int pairs_by_bits(int kind, int dtype, const Mask *mask) {
    const int free = mask->at == NULL && !mask->limit;
    return dtype == FLOAT32 && (free || goes_by_bits(kind, dtype, mask, 0));
}

/* plus, minus = w +/- scale z for a whole tile of float32 weights, with 0 where the mask is off. */
static void pair_by_bits(
    float *restrict plus, float *restrict minus, const float *restrict w, const float *restrict z,
    float scale, const Mask *mask, int64_t at
) {
    const __m512 by = _mm512_set1_ps(scale);
    uint64_t set = ~0ull;
    for (int i = 0; i < TILE; i += 16) {
        if (i % 64 == 0 && mask->limit)
            set = within(w + i, mask);
        else if (i % 64 == 0 && mask->at != NULL)
            memcpy(&set, mask->at + (at + i) / 8, 8);
        const __m512 was = _mm512_loadu_ps(w + i);
        const __mmask16 live = (__mmask16)(set >> (i % 64));
        const __m512 step = _mm512_maskz_mul_ps(live, _mm512_loadu_ps(z + i), by);
        _mm512_storeu_ps(plus + i, _mm512_add_ps(was, step));
        _mm512_storeu_ps(minus + i, _mm512_sub_ps(was, step));
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

static int pairs_by_bits(int kind, int dtype, const Mask *mask) {
    (void)kind, (void)dtype, (void)mask;
    return 0;
}

static void pair_by_bits(
    float *plus, float *minus, const float *w, const float *z, float scale, const Mask *mask,
    int64_t at
) {
    (void)plus, (void)minus, (void)w, (void)z, (void)scale, (void)mask, (void)at;
}
#endif

#endif
