/* Native sweeps over weights on the CPU: bit for bit what zolab.optim.{noise,rounding,backend} do.
 *
 * Plain C that a compiler can vectorise, no intrinsics: every loop runs over independent lanes, at
 * 55 to 65 ms per 100M normals on two cores hand-written AVX-512 was no faster. Must be compiled
 * without contraction of a * b + c into one rounding (-ffp-contract=off) and without -ffast-math.
 *
 * A tile is a run of elements that starts at a multiple of TILE within the parameter; it stays in the
 * first-level cache while all terms pass over it, so weights move through memory once per sweep.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || (defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0)
#error "float arithmetic must be IEEE: every operation rounded to its type"
#endif

#define TILE 2048 /* elements; a power of two, at least 128 (one Rademacher counter) */
#define ABI 1

enum { GAUSS, GAUSS8, RADEMACHER };
enum { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };
enum { STREAM_Z = 0, STREAM_ROUNDING = 1 };

typedef struct {
    double a;         /* coefficient of z */
    double scale;     /* factor on the weights first */
    uint64_t seed;    /* Philox key */
    const float *z;   /* the whole direction if it was kept, else NULL */
    int32_t stochastic;
} Term;

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

/* ---- Philox4x32-10 ------------------------------------------------------------------------- */

static inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    /* Written out, because gcc unrolls an inner loop only after it has given up on the outer one. */
#define ROUND                                                                                      \
    do {                                                                                           \
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;                 \
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;         \
        c0 = n0, c1 = (uint32_t)p1, c2 = n2, c3 = (uint32_t)p0;                                    \
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;                                                      \
    } while (0)
    ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND; ROUND;
#undef ROUND
    Words w = {c0, c1, c2, c3};
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

/* ---- noise --------------------------------------------------------------------------------- */

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

/* ---- 16-bit storage ------------------------------------------------------------------------ */

static inline float from_bf16(uint16_t h) {
    return float_of((uint32_t)h << 16);
}

static inline uint16_t to_bf16(float x) {
    uint32_t b = bits_of(x);
    uint32_t nearest = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
    /* The bits of torch's vectorised conversion, which knows one NaN. */
    return (uint16_t)((b & 0x7FFFFFFFu) > 0x7F800000u ? 0xFFFFu : nearest);
}

static inline float from_fp16(uint16_t h) {
    uint32_t magnitude = h & 0x7FFFu, sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t normal = (magnitude << 13) + ((magnitude >= 0x7C00u ? 224u : 112u) << 23);
    /* Via an integer: a float32 subnormal on the way would fall to a flush-to-zero mode. */
    uint32_t small = bits_of((float)(int32_t)magnitude * (1.0f / 16777216.0f));
    return float_of((magnitude < 0x0400u ? small : normal) | sign);
}

static inline uint16_t to_fp16(float x) {
    uint32_t b = bits_of(x), magnitude = b & 0x7FFFFFFFu;
    uint32_t nearest = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    /* Adding 1/2 rounds to multiples of 2^-24, the spacing below the smallest normal number. */
    uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    uint32_t h = magnitude < 0x38800000u ? small : nearest;
    h = magnitude >= 0x477FF000u ? 0x7C00u : h; /* 65520 and above */
    h = magnitude > 0x7F800000u ? (0x7E00u | ((magnitude >> 13) & 0x3FFu)) : h;
    return (uint16_t)(h | ((b >> 16) & 0x8000u));
}

/* To one of the two neighbours in the dtype; overflow is left to the conversion that follows. */
static inline float stochastic_bf16(float x, uint32_t word) {
    uint32_t b = bits_of(x), moved = (b + (word >> 16)) & 0xFFFF0000u;
    return float_of((b & 0x7F800000u) == 0x7F800000u ? b : moved);
}

static inline float stochastic_fp16(float x, uint32_t word) {
    uint32_t b = bits_of(x), magnitude = b & 0x7FFFFFFFu, sign = b & 0x80000000u;
    uint32_t moved = (b + (word >> 19)) & 0xFFFFE000u;
    float uniform = (float)(int32_t)(word >> 8) * (1.0f / 16777216.0f);
    float scaled = float_of(magnitude < 0x38800000u ? magnitude : 0) * 16777216.0f;
    /* Below 2^10 + 1 the conversion cuts, which for a positive number is the floor. */
    float small = (float)(int32_t)(scaled + uniform) * (1.0f / 16777216.0f);
    uint32_t r = magnitude < 0x38800000u ? (bits_of(small) | sign) : moved;
    return float_of(magnitude >= 0x7F800000u ? b : r);
}

static void load16(int dtype, float *restrict w, const uint16_t *restrict from, int n) {
    if (dtype == BFLOAT16)
        for (int i = 0; i < n; i++) w[i] = from_bf16(from[i]);
    else
        for (int i = 0; i < n; i++) w[i] = from_fp16(from[i]);
}

static void store16(int dtype, uint16_t *restrict to, const float *restrict w, int n) {
    if (dtype == BFLOAT16)
        for (int i = 0; i < n; i++) to[i] = to_bf16(w[i]);
    else
        for (int i = 0; i < n; i++) to[i] = to_fp16(w[i]);
}

static void round16(int dtype, float *w, int n) {
    if (dtype == BFLOAT16)
        for (int i = 0; i < n; i++) w[i] = from_bf16(to_bf16(w[i]));
    else
        for (int i = 0; i < n; i++) w[i] = from_fp16(to_fp16(w[i]));
}

static void stochastic16(int dtype, float *restrict w, const uint32_t *restrict words, int n) {
    if (dtype == BFLOAT16)
        for (int i = 0; i < n; i++) w[i] = stochastic_bf16(w[i], words[i]);
    else
        for (int i = 0; i < n; i++) w[i] = stochastic_fp16(w[i], words[i]);
}

/* ---- sweeps -------------------------------------------------------------------------------- */

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

/* The direction of one (seed, tile), made when it is first asked for. */
typedef struct {
    int kind;
    uint32_t pid;
    const float *table;
    uint64_t z_seed, word_seed;
    int has_z, has_words;
    float z[TILE];
    uint32_t words[TILE];
} Source;

static const float *direction(Source *source, const float *kept, uint64_t seed, int64_t at, int n) {
    if (kept != NULL)
        return kept + at;
    if (!source->has_z || source->z_seed != seed)
        noise_tile(
            source->kind, source->z, (uint64_t)at, n, seed, source->pid, STREAM_Z, source->table
        );
    source->has_z = 1;
    source->z_seed = seed;
    return source->z;
}

static const uint32_t *rounding(Source *source, uint64_t seed, int64_t at, int n) {
    if (!source->has_words || source->word_seed != seed)
        block_words(
            source->words, (uint64_t)at / 4, (n + 3) / 4, seed, source->pid, STREAM_ROUNDING
        );
    source->has_words = 1;
    source->word_seed = seed;
    return source->words;
}

/* One tile of float64 weights. */
static void terms64(Source *source, double *w, int64_t at, int n, const Term *terms, int count) {
    for (const Term *t = terms; t < terms + count; t++) {
        if (t->scale != 1.0)
            scale64(w, t->scale, n);
        if (t->a != 0.0)
            axpy64(w, direction(source, t->z, t->seed, at, n), t->a, n);
    }
}

/* One tile in float32. For 16-bit weights the values after each write are those of the dtype, except
 * that the last rounding to nearest is left to the store. */
static void terms32(
    Source *source, int dtype, float *w, int64_t at, int n, const Term *terms, int count
) {
    const int narrow = dtype != FLOAT32;
    int unrounded = 0;
    for (const Term *t = terms; t < terms + count; t++) {
        for (int part = 0; part < 2; part++) {
            if (part == 0 ? t->scale == 1.0 : t->a == 0.0)
                continue;
            if (unrounded)
                round16(dtype, w, n);
            if (part == 0)
                scale32(w, (float)t->scale, n);
            else
                axpy32(w, direction(source, t->z, t->seed, at, n), (float)t->a, n);
            if (narrow && t->stochastic)
                stochastic16(dtype, w, rounding(source, t->seed, at, n), n);
            unrounded = narrow;
        }
    }
}

int32_t zo_abi(void) {
    return ABI;
}

int32_t zo_tile(void) {
    return TILE;
}

/* Four words of one counter, for tests against the published answers. */
void zo_philox(uint64_t block, uint64_t seed, uint32_t pid, uint32_t stream, uint32_t *out) {
    block_words(out, block, 1, seed, pid, stream);
}

/* out[0 .. n] = elements offset .. offset + n of a stream. */
void zo_fill(
    int32_t kind, float *out, int64_t n, uint64_t seed, uint32_t pid, uint64_t offset,
    uint32_t stream, const float *table
) {
    for (int64_t done = 0; done < n;) {
        const uint64_t first = offset + (uint64_t)done;
        int64_t length = TILE - (int64_t)(first % TILE);
        length = length < n - done ? length : n - done;
        noise_tile(kind, out + done, first, (int)length, seed, pid, stream, table);
        done += length;
    }
}

/* Elements begin .. end of a parameter; begin is a multiple of TILE. Pointers are to element 0. */
void zo_sweep(
    int32_t kind, int32_t dtype, void *weight, const uint8_t *mask, int64_t begin, int64_t end,
    uint32_t pid, const Term *terms, int32_t count, const float *table
) {
    union {
        float f[TILE];
        double d[TILE];
        uint32_t u32[TILE];
        uint64_t u64[TILE];
    } work;
    uint16_t narrow[TILE];
    Source source;
    source.kind = kind;
    source.pid = pid;
    source.table = table;
    for (int64_t at = begin; at < end; at += TILE) {
        const int n = (int)(end - at < TILE ? end - at : TILE);
        const uint8_t *chosen = mask == NULL ? NULL : mask + at;
        source.has_z = source.has_words = 0;
        if (dtype == FLOAT64) {
            double *w = (double *)weight + at;
            double *d = mask == NULL ? w : work.d;
            if (mask != NULL)
                memcpy(d, w, (size_t)n * sizeof *d);
            terms64(&source, d, at, n, terms, count);
            if (mask != NULL)
                select64((uint64_t *)weight + at, work.u64, chosen, n);
        } else if (dtype == FLOAT32) {
            float *w = (float *)weight + at;
            float *f = mask == NULL ? w : work.f;
            if (mask != NULL)
                memcpy(f, w, (size_t)n * sizeof *f);
            terms32(&source, dtype, f, at, n, terms, count);
            if (mask != NULL)
                select32((uint32_t *)weight + at, work.u32, chosen, n);
        } else {
            uint16_t *w = (uint16_t *)weight + at;
            load16(dtype, work.f, w, n);
            terms32(&source, dtype, work.f, at, n, terms, count);
            if (mask == NULL) {
                store16(dtype, w, work.f, n);
            } else {
                store16(dtype, narrow, work.f, n);
                select16(w, narrow, chosen, n);
            }
        }
    }
}

/* Both perturbed copies of elements begin .. end; begin is a multiple of TILE. */
void zo_pair(
    int32_t kind, int32_t dtype, const void *weight, const uint8_t *mask, int64_t begin,
    int64_t end, uint32_t pid, uint64_t seed, const float *kept, double eps, void *plus,
    void *minus, const float *table
) {
    float work[TILE], step[TILE], up[TILE], down[TILE];
    Source source;
    source.kind = kind;
    source.pid = pid;
    source.table = table;
    for (int64_t at = begin; at < end; at += TILE) {
        const int n = (int)(end - at < TILE ? end - at : TILE);
        source.has_z = 0;
        const float *z = direction(&source, kept, seed, at, n), scale = (float)eps;
        /* The specification adds a zero where the mask is off, which turns -0 into +0 in `plus`. */
        if (mask == NULL)
            for (int i = 0; i < n; i++) step[i] = z[i] * scale;
        else
            for (int i = 0; i < n; i++) step[i] = mask[at + i] ? z[i] * scale : 0.0f;
        if (dtype == FLOAT64) {
            const double *w = (const double *)weight + at;
            double *p = (double *)plus + at, *m = (double *)minus + at;
            for (int i = 0; i < n; i++) p[i] = w[i] + (double)step[i];
            for (int i = 0; i < n; i++) m[i] = w[i] - (double)step[i];
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
