/* Work on a few elements of a tile: their places, and z and rounding words there alone. */
#ifndef ZOLAB_SPARSE_H
#define ZOLAB_SPARSE_H

#include "noise.h"

#define FEW (TILE / 8) /* places that are worked on at once */

/* How many of live[0 .. n] are not 0. */
static int live_count(const uint8_t *live, int n) {
    int total = 0, i = 0;
#ifdef __AVX512BW__
    for (; i + 64 <= n; i += 64) {
        const __m512i bytes = _mm512_loadu_si512(live + i);
        total += __builtin_popcountll(_mm512_test_epi8_mask(bytes, bytes));
    }
#endif
    for (; i < n; i++) total += live[i] != 0;
    return total;
}

/* places[...] = i where live[i] != 0, in order; their number, or -1 if more than an eighth of the
 * tile is. `places` has room for n / 8 + 32. */
static int live_places(const uint8_t *live, int n, uint16_t *places) {
    int count = 0, i = 0;
    if (8 * live_count(live, n) > n)
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
 * 1 << shift to a counter, the tile begins `skip` into its first. Returns how many there are, made
 * up to a multiple of 16 by counters that nobody asks for: those cost less than a rest does. `list`
 * and `slot` have room for FEW + 32. */
static int counters_of(
    const uint16_t *places, int n, int skip, int shift, uint32_t *list, uint32_t *slot
) {
    const uint32_t within = (1u << shift) - 1;
    int count = 0, i = 0;
    uint32_t last = ~0u;
#if defined(__AVX512F__) && defined(__AVX512VPOPCNTDQ__)
    /* Bits up to and with each lane's own. */
    const __m512i upto = _mm512_set_epi32(
        0xFFFF, 0x7FFF, 0x3FFF, 0x1FFF, 0xFFF, 0x7FF, 0x3FF, 0x1FF, 0xFF, 0x7F, 0x3F, 0x1F, 0xF, 7,
        3, 1
    );
    const __m512i start = _mm512_set1_epi32(skip), low = _mm512_set1_epi32((int)within);
    __m512i before = _mm512_set1_epi32(-1);
    for (; i + 16 <= n; i += 16) {
        __m512i place = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(places + i)));
        place = _mm512_add_epi32(place, start);
        __m512i counter = _mm512_srl_epi32(place, _mm_cvtsi32_si128(shift));
        __mmask16 fresh = _mm512_cmpneq_epi32_mask(counter, _mm512_alignr_epi32(counter, before, 15));
        __m512i rank = _mm512_popcnt_epi32(_mm512_and_si512(upto, _mm512_set1_epi32(fresh)));
        rank = _mm512_add_epi32(rank, _mm512_set1_epi32(count - 1));
        rank = _mm512_sll_epi32(rank, _mm_cvtsi32_si128(shift));
        _mm512_storeu_si512(slot + i, _mm512_or_si512(rank, _mm512_and_si512(place, low)));
        _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(fresh, counter));
        count += __builtin_popcount(fresh);
        before = counter;
    }
    if (i > 0)
        last = list[count - 1];
#endif
    for (; i < n; i++) {
        const uint32_t place = (uint32_t)skip + places[i], counter = place >> shift;
        list[count] = counter;
        count += counter != last;
        last = counter;
        slot[i] = ((uint32_t)(count - 1) << shift) | (place & within);
    }
    while (count % 16 != 0) list[count++] = 0;
    return count;
}

static int shift_of(int kind) {
    return kind == GAUSS ? 2 : kind == GAUSS8 ? 4 : 7;
}

/* out[i] = z at places[i] of the tile that begins with element `first`; n <= FEW. */
static void noise_places(
    int kind, float *out, uint64_t first, const uint16_t *places, int n, uint64_t seed,
    uint32_t pid, const float *table
) {
    const uint64_t per = (uint64_t)per_block(kind);
    const int skip = (int)(first % per);
    uint32_t list[FEW + 32], slot[FEW + 32], words[4 * FEW + 128];
    float made[4 * FEW + 128];
    if (n == 0)
        return;
    if (kind == RADEMACHER) {
        /* Hardly a counter has no place. */
        block_words(words, first / per, (skip + places[n - 1]) / 128 + 1, seed, pid, 0);
        for (int i = 0; i < n; i++) {
            uint32_t at = (uint32_t)skip + places[i], bit = (words[at / 32] >> (at % 32)) & 1;
            out[i] = float_of(bit << 31 | 0x3F800000u);
        }
        return;
    }
    const int count = counters_of(places, n, skip, shift_of(kind), list, slot);
    listed_words(words, first / per, list, count, seed, pid, 0);
    if (kind == GAUSS) {
        gauss_of(made, words, 4 * count);
        for (int i = 0; i < n; i++) out[i] = made[slot[i]];
    } else {
        for (int i = 0; i < n; i++)
            out[i] = table[(words[slot[i] / 4] >> (8 * (slot[i] % 4))) & 255];
    }
}

/* out[i] = word places[i] of a stream, counted from word `first`. */
static void words_places(
    uint32_t *out, uint64_t first, const uint16_t *places, int n, uint64_t seed, uint32_t pid,
    uint32_t stream
) {
    uint32_t list[FEW + 32], slot[FEW + 32], words[4 * FEW + 128];
    int count = counters_of(places, n, (int)(first % 4), 2, list, slot);
    listed_words(words, first / 4, list, count, seed, pid, stream);
    for (int i = 0; i < n; i++) out[i] = words[slot[i]];
}

#endif
