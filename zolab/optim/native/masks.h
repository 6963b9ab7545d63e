/* Masks of a tile: as bytes or bits that are held, or decided from the weights. */
#ifndef ZOLAB_MASKS_H
#define ZOLAB_MASKS_H

#include "noise.h"
#include "storage.h"

/* A tile within a parameter: its first element, counted from the start of the parameter and from the
 * start of the memory that the caller passed, and its length. */
typedef struct {
    uint64_t first;
    int64_t at;
    int n;
} Tile;

static Tile tile_at(uint64_t offset, int64_t at, int64_t end) {
    Tile tile = {offset + (uint64_t)at, at, 0};
    int64_t room = TILE - (int64_t)(tile.first % TILE);
    tile.n = (int)(end - at < room ? end - at : room);
    return tile;
}

/* Which elements may move. */
typedef struct {
    uint8_t *at;      /* the mask as it is held, NULL if none is */
    /* PLACES: where in `at` those of each tile begin, tiles counted from the parameter's first */
    const int32_t *starts;
    int32_t form;     /* how: BYTES, one an element, BITS, lowest first, or PLACES, see below */
    int32_t limit;    /* BELOW or ABOVE: decided anew from the weights themselves; 0: it is not */
    double threshold; /* |w| <= threshold, or >= */
    int32_t split;    /* terms applied before that, under the mask as it was */
} Mask;

enum { BYTES = 1, BITS = 2, PLACES = 3, BELOW = 1, ABOVE = 2 };

/* The places of a tile that may move, in order, counted from its first element: where only few do,
 * they are held themselves, as 16-bit numbers counted from the multiple of TILE before the tile.
 * `spare` is used where the tile does not begin there. */
static const uint16_t *places_of(const Mask *mask, uint16_t *spare, Tile tile, int *count) {
    const uint64_t number = tile.first / TILE;
    const int skip = (int)(tile.first % TILE);
    const uint16_t *places = (const uint16_t *)mask->at + mask->starts[number];
    int n = mask->starts[number + 1] - mask->starts[number], kept = 0;
    if (skip == 0 && (n == 0 || places[n - 1] < tile.n)) {
        *count = n;
        return places;
    }
    for (int i = 0; i < n; i++) {
        const int place = places[i] - skip;
        spare[kept] = (uint16_t)place;
        kept += place >= 0 && place < tile.n;
    }
    *count = kept;
    return spare;
}

#ifdef __AVX512BW__
/* Which of 16 weights are within the limit. */
static inline __mmask16 within16(__m512 w, const Mask *mask) {
    const __m512 edge = _mm512_set1_ps((float)mask->threshold), size = _mm512_abs_ps(w);
    const __m512 small = mask->limit == BELOW ? size : edge;
    return _mm512_cmp_ps_mask(small, mask->limit == BELOW ? edge : size, _CMP_LE_OQ);
}

/* Of 64. */
static inline uint64_t within(const float *w, const Mask *mask) {
    uint64_t set = 0;
    for (int j = 0; j < 64; j += 16)
        set |= (uint64_t)within16(_mm512_loadu_ps(w + j), mask) << j;
    return set;
}
#endif

/* out[i] = 1 where the weights of a tile are within the limit, else 0. */
static void decide(uint8_t *restrict out, const Mask *mask, int dtype, const void *weight, Tile tile) {
    float wide[TILE];
    const float h = (float)mask->threshold;
    const int below = mask->limit == BELOW, n = tile.n;
    if (dtype == FLOAT64) {
        const double *w = (const double *)weight + tile.at;
        for (int i = 0; i < n; i++) {
            double size = fabs(w[i]);
            out[i] = below ? size <= mask->threshold : size >= mask->threshold;
        }
        return;
    }
    const float *w = wide;
    int i = 0;
    if (dtype == FLOAT32)
        w = (const float *)weight + tile.at;
    else
        load16(dtype, wide, (const uint16_t *)weight + tile.at, n);
#ifdef __AVX512BW__
    for (; i + 64 <= n; i += 64)
        _mm512_storeu_si512(out + i, _mm512_maskz_set1_epi8(within(w + i, mask), 1));
#endif
    for (; i < n; i++) out[i] = below ? fabsf(w[i]) <= h : fabsf(w[i]) >= h;
}

/* The mask of a tile as it is held, a byte an element; NULL if none is. */
static const uint8_t *held(const Mask *mask, uint8_t *out, Tile tile) {
    if (mask->at == NULL || mask->form == BYTES)
        return mask->at == NULL ? NULL : mask->at + tile.at;
    if (mask->form == PLACES) {
        uint16_t spare[TILE];
        int few;
        const uint16_t *places = places_of(mask, spare, tile, &few);
        memset(out, 0, (size_t)tile.n);
        for (int i = 0; i < few; i++) out[places[i]] = 1;
        return out;
    }
    const uint8_t *bits = mask->at + tile.at / 8;
#ifdef __AVX512BW__
    if (tile.n == TILE) {
        for (int i = 0; i < TILE; i += 64) {
            uint64_t word;
            memcpy(&word, bits + i / 8, 8);
            _mm512_storeu_si512(out + i, _mm512_maskz_set1_epi8(word, 1));
        }
        return out;
    }
#endif
    for (int i = 0; i < (tile.n + 7) / 8; i++) {
        uint64_t one = (bits[i] * 0x0101010101010101u) & 0x8040201008040201u;
        one = ((one + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
        for (int j = 0; j < 8; j++) out[8 * i + j] = (uint8_t)(one >> (8 * j));
    }
    return out;
}

/* Ask for the weights of the tile after the next. Memory sees no pattern in the places of a few, and
 * reads a whole tile in order sooner than a tenth of its lines one by one. Always inline: gcc takes a
 * function of prefetches for one without effect and drops the call. */
__attribute__((always_inline)) static inline void fetch_ahead(
    const Mask *mask, const char *weight, int dtype, Tile tile, int64_t end
) {
    const uint64_t number = tile.first / TILE + 2;
    const int64_t at = tile.at - (int64_t)(tile.first % TILE) + 2 * TILE;
    const int size = dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2;
    const uint16_t *places = (const uint16_t *)mask->at;
    if (at + TILE > end)
        return;
    const int first = mask->starts[number], last = mask->starts[number + 1];
    if (last - first < 8)
        for (int i = first; i < last; i++) __builtin_prefetch(weight + size * (at + places[i]));
    else
        for (int i = 0; i < TILE * size; i += 64) __builtin_prefetch(weight + size * at + i);
}

static void hold(const Mask *mask, uint8_t *live, Tile tile) {
    if (mask->at == NULL)
        return;
    if (mask->form == BYTES) {
        memcpy(mask->at + tile.at, live, (size_t)tile.n);
        return;
    }
    int i = 0;
#ifdef __AVX512BW__
    for (; 8 * i + 64 <= tile.n; i += 8) {
        __m512i bytes = _mm512_loadu_si512(live + 8 * i);
        uint64_t set = _mm512_test_epi8_mask(bytes, bytes);
        memcpy(mask->at + tile.at / 8 + i, &set, 8);
    }
#endif
    for (int j = tile.n; j % 8 != 0; j++) live[j] = 0;
    for (; i < (tile.n + 7) / 8; i++) {
        uint64_t eight = 0;
        for (int j = 0; j < 8; j++) eight |= (uint64_t)live[8 * i + j] << (8 * j);
        mask->at[tile.at / 8 + i] = (uint8_t)((eight * 0x0102040810204080u) >> 56);
    }
}

#endif
