/* Philox words and the elements of z: bit for bit what zolab.optim.{philox,noise} do. */
#ifndef ZOLAB_NOISE_H
#define ZOLAB_NOISE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__FAST_MATH__) || (defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0)
#error "float arithmetic must be IEEE: every operation rounded to its type"
#endif

#define TILE 2048 /* elements; a power of two, at least 128 (one Rademacher counter) */

enum { GAUSS, GAUSS8, RADEMACHER };

typedef struct {
    uint32_t x0, x1, x2, x3;
} Words;

static inline uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static inline float float_of(uint32_t b) {
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

static inline Words philox(
    uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed
) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    /* Written out, because gcc unrolls an inner loop only after it has given up on the outer one. */
#define ROUND                                                                                      \
    do {                                                                                           \
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;                                                  \
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;                                                  \
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;         \
        c0 = n0, c1 = (uint32_t)p1, c2 = n2, c3 = (uint32_t)p0;                                    \
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;                                                      \
    } while (0)
    ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND;
#undef ROUND
    Words w = {c0, c1, c2, c3};
    return w;
}

#ifdef __AVX512F__
/* The same for 16 counters with the low words `c0` and then `d0`, words in natural order. By hand, because compilers make a
 * full 64-bit product of what is one 32-bit multiply; a lane holds its word in the low half, and
 * what gathers in the high half is never looked at. */
static inline void philox16(
    uint32_t *out, __m512i c0, __m512i d0, uint32_t high, uint32_t pid, uint32_t stream,
    uint64_t seed
) {
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i second = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    __m512i a[4], b[4];
    a[0] = c0, b[0] = d0;
    a[1] = b[1] = _mm512_set1_epi64(high);
    a[2] = b[2] = _mm512_set1_epi64(pid);
    a[3] = b[3] = _mm512_set1_epi64(stream);
#define STEP(c)                                                                                    \
    do {                                                                                           \
        __m512i p0 = _mm512_mul_epu32(c[0], m0), p1 = _mm512_mul_epu32(c[2], m1);                  \
        c[0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c[1], key0, 0x96);             \
        c[2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c[3], key1, 0x96);             \
        c[1] = p1, c[3] = p0;                                                                      \
    } while (0)
    for (int round = 0; round < 10; round++) {
        const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
        STEP(a);
        STEP(b);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
#undef STEP
#define STORE(c, to)                                                                               \
    do {                                                                                           \
        __m512i x = _mm512_mask_blend_epi32(0xAAAA, c[0], _mm512_slli_epi64(c[1], 32));            \
        __m512i y = _mm512_mask_blend_epi32(0xAAAA, c[2], _mm512_slli_epi64(c[3], 32));            \
        _mm512_storeu_si512(to, _mm512_permutex2var_epi64(x, first, y));                           \
        _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(x, second, y));                     \
    } while (0)
    STORE(a, out);
    STORE(b, out + 32);
#undef STORE
}
#endif

/* Words of `n` counters from `block` on. The low counter word must not wrap within the call. */
static void block_words(
    uint32_t *restrict out, uint64_t block, int n, uint64_t seed, uint32_t pid, uint32_t stream
) {
    const uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);
    int done = 0;
#ifdef __AVX512F__
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    for (; done + 16 <= n; done += 16) {
        __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64((int64_t)low + done), lanes);
        __m512i d0 = _mm512_add_epi64(c0, _mm512_set1_epi64(8));
        philox16(out + 4 * done, c0, d0, high, pid, stream, seed);
    }
#endif
    for (int i = done; i < n; i++) {
        Words w = philox(low + (uint32_t)i, high, pid, stream, seed);
        out[4 * i] = w.x0;
        out[4 * i + 1] = w.x1;
        out[4 * i + 2] = w.x2;
        out[4 * i + 3] = w.x3;
    }
}

/* Words of the counters block + list[0], block + list[1], ... */
static void listed_words(
    uint32_t *restrict out, uint64_t block, const uint32_t *restrict list, int n, uint64_t seed,
    uint32_t pid, uint32_t stream
) {
    const uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);
    int done = 0;
#ifdef __AVX512F__
    const __m512i base = _mm512_set1_epi64(low);
    for (; done + 16 <= n; done += 16) {
        __m512i at = _mm512_loadu_si512(list + done);
        __m512i c0 = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(at));
        __m512i d0 = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(at, 1));
        philox16(
            out + 4 * done, _mm512_add_epi64(base, c0), _mm512_add_epi64(base, d0), high, pid,
            stream, seed
        );
    }
#endif
    for (int i = done; i < n; i++) {
        Words w = philox(low + list[i], high, pid, stream, seed);
        out[4 * i] = w.x0;
        out[4 * i + 1] = w.x1;
        out[4 * i + 2] = w.x2;
        out[4 * i + 3] = w.x3;
    }
}

/* sqrt(-2 ln u), u = (x >> 9 + 1/2) 2^-23. sqrtf is correctly rounded, as is the specification's
 * float64 square root rounded to float32: 53 bits exceed 2 * 24 + 2. */
static inline float radius_of(uint32_t x) {
    float u = ((float)(int32_t)(x >> 9) + 0.5f) * (1.0f / 8388608.0f);
    int32_t b = (int32_t)bits_of(u);
    int32_t e = (b - 0x3F3504F3) >> 23; /* arithmetic shift: the floor of a negative exponent */
    float m = float_of((uint32_t)b - ((uint32_t)e << 23)) - 1.0f;
    float square = m * m, fe = (float)e;
    float y = m * (float)7.0376836292e-2 + (float)-1.1514610310e-1;
    y = y * m + (float)1.1676998740e-1;
    y = y * m + (float)-1.2420140846e-1;
    y = y * m + (float)1.4249322787e-1;
    y = y * m + (float)-1.6668057665e-1;
    y = y * m + (float)2.0000714765e-1;
    y = y * m + (float)-2.4999993993e-1;
    y = y * m + (float)3.3333331174e-1;
    y = y * m;
    y = y * square;
    y = y + fe * (float)-2.12194440e-4;
    y = y - square * 0.5f;
    y = y + m;
    y = y + fe * (float)0.693359375;
    return sqrtf(y * -2.0f);
}

/* radius * (cos, sin) of a uniform angle: quadrant in the top two bits of x, 23 bits within it. */
static inline void polar(float radius, uint32_t x, float *restrict c, float *restrict s) {
    float a = (float)(int32_t)((x >> 7) & 0x7FFFFFu) + 0.5f;
    a = (a * (1.0f / 8388608.0f) - 0.5f) * (float)1.57079632679;
    float q = a * a;
    float sine = q * (float)-1.9515295891e-4 + (float)8.3321608736e-3;
    sine = sine * q + (float)-1.6666654611e-1;
    sine = sine * q * a + a;
    float cosine = q * (float)2.443315711809948e-5 + (float)-1.388731625493765e-3;
    cosine = cosine * q + (float)4.166664568298827e-2;
    cosine = cosine * q * q - q * 0.5f + 1.0f;
    uint32_t tc = bits_of((cosine - sine) * (float)0.70710678118);
    uint32_t ts = bits_of((cosine + sine) * (float)0.70710678118);
    /* Selection and signs by bits: no branches, and exact. */
    uint32_t odd = 0u - ((x >> 30) & 1u), sign = x & 0x80000000u;
    *s = radius * float_of(((tc & odd) | (ts & ~odd)) ^ sign);
    *c = radius * float_of((((ts ^ 0x80000000u) & odd) | (tc & ~odd)) ^ sign);
}

/* The words are made first: they take 64-bit lanes, which would hold the floats to half width. */
static void gauss_of(float *restrict out, const uint32_t *restrict words, int n) {
    for (int i = 0; i < n / 2; i++) {
        float c, s;
        polar(radius_of(words[2 * i]), words[2 * i + 1], &c, &s);
        out[2 * i] = c;
        out[2 * i + 1] = s;
    }
}

#ifdef __AVX512VBMI__
/* Levels of 64 bytes at a time. The table is antisymmetric, so 128 magnitudes and a sign do, and
 * 128 bytes are what one instruction looks up in: each of the four bytes of a float has such a
 * table. `planes` holds those of magnitude 0 .. 127, taken from the upper half of the levels. */
typedef struct {
    __m512i low[4], high[4];
} Planes;

static Planes planes_of(const float *table) {
    Planes planes;
    for (int k = 0; k < 4; k++) {
        uint8_t bytes[128];
        for (int i = 0; i < 128; i++) bytes[i] = (uint8_t)(bits_of(table[128 + i]) >> (8 * k));
        planes.low[k] = _mm512_loadu_si512(bytes);
        planes.high[k] = _mm512_loadu_si512(bytes + 64);
    }
    return planes;
}

/* out[0 .. 64] = levels of 64 bytes. */
static inline void levels64(float *out, __m512i byte, const Planes *planes) {
    /* Unpacking works within 128-bit lanes: sort the bytes so that it ends in natural order. */
    const __m512i order = _mm512_set_epi32(
        63 << 24 | 62 << 16 | 61 << 8 | 60, 47 << 24 | 46 << 16 | 45 << 8 | 44,
        31 << 24 | 30 << 16 | 29 << 8 | 28, 15 << 24 | 14 << 16 | 13 << 8 | 12,
        59 << 24 | 58 << 16 | 57 << 8 | 56, 43 << 24 | 42 << 16 | 41 << 8 | 40,
        27 << 24 | 26 << 16 | 25 << 8 | 24, 11 << 24 | 10 << 16 | 9 << 8 | 8,
        55 << 24 | 54 << 16 | 53 << 8 | 52, 39 << 24 | 38 << 16 | 37 << 8 | 36,
        23 << 24 | 22 << 16 | 21 << 8 | 20, 7 << 24 | 6 << 16 | 5 << 8 | 4,
        51 << 24 | 50 << 16 | 49 << 8 | 48, 35 << 24 | 34 << 16 | 33 << 8 | 32,
        19 << 24 | 18 << 16 | 17 << 8 | 16, 3 << 24 | 2 << 16 | 1 << 8 | 0
    );
    __m512i at = _mm512_permutexvar_epi8(order, byte);
    /* Level b >= 128 is magnitude b - 128; below, it is minus magnitude 127 - b. */
    __mmask64 positive = _mm512_movepi8_mask(at);
    __m512i index = _mm512_mask_blend_epi8(positive, _mm512_xor_si512(at, _mm512_set1_epi8(127)), at);
    __m512i plane[4];
    for (int k = 0; k < 4; k++)
        plane[k] = _mm512_permutex2var_epi8(planes->low[k], index, planes->high[k]);
    plane[3] = _mm512_mask_blend_epi8(
        positive, _mm512_xor_si512(plane[3], _mm512_set1_epi8((char)0x80)), plane[3]
    );
    __m512i a = _mm512_unpacklo_epi8(plane[0], plane[1]), b = _mm512_unpackhi_epi8(plane[0], plane[1]);
    __m512i c = _mm512_unpacklo_epi8(plane[2], plane[3]), d = _mm512_unpackhi_epi8(plane[2], plane[3]);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi16(a, c));
    _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi16(a, c));
    _mm512_storeu_si512(out + 32, _mm512_unpacklo_epi16(b, d));
    _mm512_storeu_si512(out + 48, _mm512_unpackhi_epi16(b, d));
}
#endif

static void gauss8_of(
    float *restrict out, const uint32_t *restrict words, int n, const float *restrict table
) {
    int done = 0;
#ifdef __AVX512VBMI__
    const Planes planes = planes_of(table);
    for (; done + 16 <= n; done += 16)
        levels64(out + 4 * done, _mm512_loadu_si512(words + done), &planes);
#endif
    for (int i = done; i < n; i++) {
        uint32_t w = words[i];
        out[4 * i] = table[w & 255];
        out[4 * i + 1] = table[(w >> 8) & 255];
        out[4 * i + 2] = table[(w >> 16) & 255];
        out[4 * i + 3] = table[w >> 24];
    }
}

static void rademacher_of(float *restrict out, const uint32_t *restrict words, int n) {
    for (int i = 0; i < n; i++) {
        uint32_t w = words[i];
        for (int j = 0; j < 32; j++)
            out[32 * i + j] = float_of(((w << (31 - j)) & 0x80000000u) | 0x3F800000u);
    }
}

/* Elements of `n` words. */
static void elements(
    int kind, float *restrict out, const uint32_t *restrict words, int n, const float *table
) {
    if (kind == GAUSS)
        gauss_of(out, words, n);
    else if (kind == GAUSS8)
        gauss8_of(out, words, n, table);
    else
        rademacher_of(out, words, n);
}

static int per_block(int kind) {
    return kind == GAUSS ? 4 : kind == GAUSS8 ? 16 : 128;
}

/* Elements first .. first + n of one tile, n > 0. */
static void noise_tile(
    int kind, float *out, uint64_t first, int n, uint64_t seed, uint32_t pid, uint32_t stream,
    const float *table
) {
    float whole[TILE];
    uint32_t words[TILE];
    const uint64_t per = (uint64_t)per_block(kind);
    const uint64_t block = first / per, last = (first + (uint64_t)n - 1) / per;
    const int skip = (int)(first - block * per), blocks = (int)(last - block) + 1;
    const int direct = skip == 0 && (uint64_t)blocks * per == (uint64_t)n;
    block_words(words, block, blocks, seed, pid, stream);
    elements(kind, direct ? out : whole, words, 4 * blocks, table);
    if (!direct)
        memcpy(out, whole + skip, (size_t)n * sizeof(float));
}

/* The counters of gauss in a tile that hold an element with live[i] != 0, counted from its first. */
static int live_blocks(const uint8_t *live, int blocks, uint32_t *list) {
    int count = 0, b = 0;
#ifdef __AVX512F__
    __m512i at = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; b + 16 <= blocks; b += 16) {
        __m512i bytes = _mm512_loadu_si512(live + 4 * b);
        __mmask16 set = _mm512_test_epi32_mask(bytes, bytes);
        _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(set, at));
        count += __builtin_popcount(set);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
#endif
    for (; b < blocks; b++) {
        uint32_t four;
        memcpy(&four, live + 4 * b, 4);
        list[count] = (uint32_t)b;
        count += four != 0;
    }
    return count;
}

/* As noise_tile, but only where live[i] != 0 need `out` hold z: a counter of gauss without such an
 * element is not evaluated. The other kinds have too many elements to a counter for that. */
static void noise_tile_live(
    int kind, float *out, uint64_t first, int n, uint64_t seed, uint32_t pid, const float *table,
    const uint8_t *live
) {
    const int blocks = n / 4, whole = kind == GAUSS && first % 4 == 0 && n % 4 == 0;
    uint32_t list[TILE / 4 + 16], words[TILE];
    float made[TILE];
    const int count = whole ? live_blocks(live, blocks, list) : 0;
    if (!whole || 4 * count > 3 * blocks) {
        noise_tile(kind, out, first, n, seed, pid, 0, table);
        return;
    }
    listed_words(words, first / 4, list, count, seed, pid, 0);
    gauss_of(made, words, 4 * count);
    for (int i = 0; i < count; i++) memcpy(out + 4 * list[i], made + 4 * i, 4 * sizeof(float));
}

#endif
