/* Philox words and the elements of z: bit for bit what zolab.optim.{philox,noise} do. */
#ifndef ZOLAB_NOISE_H
#define ZOLAB_NOISE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* What a vector lane holds. With a 64-bit multiply in the instruction set, wide lanes spare the
 * shuffles between a 32-bit word and its 64-bit product (1.8 ms against 2.8 ms for 2.2M normals);
 * where that multiply is emulated they lose. Only the low half of a wide lane counts. */
#ifdef __AVX512DQ__
typedef uint64_t Lane;
#else
typedef uint32_t Lane;
#endif

static inline Words philox(Lane c0, Lane c1, Lane c2, Lane c3, uint64_t seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    /* Written out, because gcc unrolls an inner loop only after it has given up on the outer one. */
#define ROUND                                                                                      \
    do {                                                                                           \
        uint64_t p0 = (uint64_t)0xD2511F53u * (uint32_t)c0;                                        \
        uint64_t p1 = (uint64_t)0xCD9E8D57u * (uint32_t)c2;                                        \
        Lane n0 = (Lane)(p1 >> 32) ^ c1 ^ k0, n2 = (Lane)(p0 >> 32) ^ c3 ^ k1;                     \
        c0 = n0, c1 = (Lane)p1, c2 = n2, c3 = (Lane)p0;                                            \
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;                                                      \
    } while (0)
    ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND;
#undef ROUND
    Words w = {(uint32_t)c0, (uint32_t)c1, (uint32_t)c2, (uint32_t)c3};
    return w;
}

/* Words of `n` counters from `block` on. The low counter word must not wrap within the call. */
static void block_words(
    uint32_t *restrict out, uint64_t block, int n, uint64_t seed, uint32_t pid, uint32_t stream
) {
    const uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);
    for (int i = 0; i < n; i++) {
        Words w = philox(low + (uint32_t)i, high, pid, stream, seed);
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

static void gauss_blocks(
    float *restrict out, uint64_t block, int n, uint64_t seed, uint32_t pid, uint32_t stream
) {
    const uint32_t low = (uint32_t)block, high = (uint32_t)(block >> 32);
    for (int i = 0; i < n; i++) {
        Words w = philox(low + (uint32_t)i, high, pid, stream, seed);
        float c0, s0, c1, s1;
        polar(radius_of(w.x0), w.x1, &c0, &s0);
        polar(radius_of(w.x2), w.x3, &c1, &s1);
        out[4 * i] = c0;
        out[4 * i + 1] = s0;
        out[4 * i + 2] = c1;
        out[4 * i + 3] = s1;
    }
}

static void gauss8_blocks(
    float *restrict out, uint64_t block, int n, uint64_t seed, uint32_t pid, uint32_t stream,
    const float *restrict table
) {
    uint32_t words[TILE / 4];
    block_words(words, block, n, seed, pid, stream);
    for (int i = 0; i < 4 * n; i++) {
        uint32_t w = words[i];
        out[4 * i] = table[w & 255];
        out[4 * i + 1] = table[(w >> 8) & 255];
        out[4 * i + 2] = table[(w >> 16) & 255];
        out[4 * i + 3] = table[w >> 24];
    }
}

static void rademacher_blocks(
    float *restrict out, uint64_t block, int n, uint64_t seed, uint32_t pid, uint32_t stream
) {
    uint32_t words[TILE / 32];
    block_words(words, block, n, seed, pid, stream);
    for (int i = 0; i < 4 * n; i++) {
        uint32_t w = words[i];
        for (int j = 0; j < 32; j++)
            out[32 * i + j] = float_of(((w << (31 - j)) & 0x80000000u) | 0x3F800000u);
    }
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
    const uint64_t per = (uint64_t)per_block(kind);
    const uint64_t block = first / per, last = (first + (uint64_t)n - 1) / per;
    const int skip = (int)(first - block * per), blocks = (int)(last - block) + 1;
    const int direct = skip == 0 && (uint64_t)blocks * per == (uint64_t)n;
    float *to = direct ? out : whole;
    if (kind == GAUSS)
        gauss_blocks(to, block, blocks, seed, pid, stream);
    else if (kind == GAUSS8)
        gauss8_blocks(to, block, blocks, seed, pid, stream, table);
    else
        rademacher_blocks(to, block, blocks, seed, pid, stream);
    if (!direct)
        memcpy(out, whole + skip, (size_t)n * sizeof(float));
}

#endif
