/* Work on a few elements of a tile: their places, and z and rounding words there alone. */
#ifndef ZOLAB_SPARSE_H
#define ZOLAB_SPARSE_H

#include "noise.h"

/* places[...] = i where live[i] != 0, in order; their number, or -1 if more than an eighth of the
 * tile is. `places` has room for n / 8 + 32. */
static int live_places(const uint8_t *live, int n, uint16_t *places) {
    int total = 0, count = 0, i = 0;
    for (int j = 0; j < n; j++) total += live[j] != 0;
    if (8 * total > n)
        return -1;
#ifdef __AVX512VBMI2__
    const __m512i step = _mm512_set1_epi16(32);
    __m512i at = _mm512_set_epi16(
        31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9,
        8, 7, 6, 5, 4, 3, 2, 1, 0
    );
    for (; i + 64 <= n; i += 64) {
        __m512i bytes = _mm512_loadu_si512(live + i);
        uint64_t set = _mm512_test_epi8_mask(bytes, bytes);
        _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi16((uint32_t)set, at));
        count += __builtin_popcountll(set & 0xFFFFFFFFu);
        at = _mm512_add_epi16(at, step);
        _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi16(set >> 32, at));
        count += __builtin_popcountll(set >> 32);
        at = _mm512_add_epi16(at, step);
    }
#endif
    for (; i < n; i++) {
        places[count] = (uint16_t)i;
        count += live[i] != 0;
    }
    return count;
}

/* The counters that hold the places, each once, and where in their words or elements each place is:
 * `per` to a counter, the tile begins `skip` into its first. */
static int counters_of(
    const uint16_t *places, int n, int skip, int per, uint32_t *list, uint32_t *slot
) {
    int count = 0;
    int64_t last = -1;
    for (int i = 0; i < n; i++) {
        const int64_t place = skip + places[i], counter = place / per;
        list[count] = (uint32_t)counter;
        count += counter != last;
        last = counter;
        slot[i] = (uint32_t)((count - 1) * per + (int)(place % per));
    }
    return count;
}

/* out[i] = z at places[i] of the tile that begins with element `first`. */
static void noise_places(
    int kind, float *out, uint64_t first, const uint16_t *places, int n, uint64_t seed,
    uint32_t pid, const float *table
) {
    const int per = per_block(kind);
    uint32_t list[TILE / 8 + 1], slot[TILE / 8 + 1], words[TILE / 2 + 4];
    float made[TILE / 2 + 4];
    int count = counters_of(places, n, (int)(first % (uint64_t)per), per, list, slot);
    listed_words(words, first / (uint64_t)per, list, count, seed, pid, 0);
    if (kind == GAUSS) {
        gauss_of(made, words, 4 * count);
        for (int i = 0; i < n; i++) out[i] = made[slot[i]];
    } else if (kind == GAUSS8) {
        for (int i = 0; i < n; i++)
            out[i] = table[(words[slot[i] / 4] >> (8 * (slot[i] % 4))) & 255];
    } else {
        for (int i = 0; i < n; i++) {
            uint32_t bit = (words[slot[i] / 32] >> (slot[i] % 32)) & 1;
            out[i] = float_of(bit << 31 | 0x3F800000u);
        }
    }
}

/* out[i] = word places[i] of a stream, counted from word `first`. */
static void words_places(
    uint32_t *out, uint64_t first, const uint16_t *places, int n, uint64_t seed, uint32_t pid,
    uint32_t stream
) {
    uint32_t list[TILE / 8 + 1], slot[TILE / 8 + 1], words[TILE / 2 + 4];
    int count = counters_of(places, n, (int)(first % 4), 4, list, slot);
    listed_words(words, first / 4, list, count, seed, pid, stream);
    for (int i = 0; i < n; i++) out[i] = words[slot[i]];
}

#endif
