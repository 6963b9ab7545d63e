/* The part of a linear layer's output that a perturbation of low rank adds. No bits are promised: it
 * stands beside a matrix product, whose sums are the BLAS's own. */
#ifndef ZOLAB_THIN_H
#define ZOLAB_THIN_H

#include "product.h"

#ifdef __AVX512F__
#define AT_ONCE 4 /* rows of the batch, and columns of a factor, that share what is loaded */
#define LOT 64    /* rows that share a panel of a factor in the first-level cache, at a high rank */
#define WIDTH 64  /* of a panel */

static inline __mmask16 first_lanes(int64_t n) {
    return n >= 16 ? 0xFFFF : (__mmask16)((1u << n) - 1);
}

/* The sum of each of 16 vectors, in order: shuffles for all of them at once, a third of the work. */
static inline __m512 sums(const __m512 *v) {
    __m512 two[8], four[4], half[2];
    for (int i = 0; i < 8; i++)
        two[i] = _mm512_add_ps(
            _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1])
        );
    for (int i = 0; i < 4; i++) {
        const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b))
        );
    }
#define LANES_OF(A, B)                                                                             \
    _mm512_add_ps(_mm512_shuffle_f32x4(A, B, 0x88), _mm512_shuffle_f32x4(A, B, 0xDD))
    for (int i = 0; i < 2; i++) half[i] = LANES_OF(four[2 * i], four[2 * i + 1]);
    return LANES_OF(half[0], half[1]);
#undef LANES_OF
}

/* inner[i][k] = scale * (x[i] . right[k]) for AT_ONCE rows of x; those after the last repeat it. */
static void thin_in(
    float *restrict inner, const float *const *x, const float *restrict right, int64_t n, int rank,
    float scale
) {
    /* At a high rank fetching is spread over all of the work: at once it would hold that up. */
    const int parts = (rank + AT_ONCE - 1) / AT_ONCE;
    const int64_t ahead = parts >= AT_ONCE ? (16 * AT_ONCE + parts - 1) / parts : 0;
    const float *next = x[0] + AT_ONCE * n;
    for (int k = 0; k < rank; k += AT_ONCE) {
        const int some = rank - k < AT_ONCE ? rank - k : AT_ONCE;
        const float *v[AT_ONCE];
        __m512 sum[AT_ONCE * AT_ONCE];
        for (int j = 0; j < AT_ONCE; j++) {
            v[j] = right + (k + (j < some ? j : 0)) * n;
            for (int i = 0; i < AT_ONCE; i++) sum[i * AT_ONCE + j] = _mm512_setzero_ps();
        }
#define TAKE(COUNT)                                                                                \
    for (int64_t c = 0; c < n; c += 16) {                                                          \
        const __mmask16 lanes = first_lanes(n - c);                                                \
        __m512 row[AT_ONCE];                                                                       \
        for (int i = 0; i < AT_ONCE; i++) {                                                        \
            row[i] = _mm512_maskz_loadu_ps(lanes, x[i] + c);                                       \
            if (k == 0 && ahead == 0)                                                              \
                __builtin_prefetch(x[i] + AT_ONCE * n + c);                                        \
        }                                                                                          \
        if (ahead) {                                                                               \
            __builtin_prefetch(next);                                                              \
            next += ahead;                                                                         \
        }                                                                                          \
        for (int j = 0; j < COUNT; j++) {                                                          \
            const __m512 column = _mm512_maskz_loadu_ps(lanes, v[j] + c);                          \
            for (int i = 0; i < AT_ONCE; i++) {                                                    \
                __m512 *at = sum + i * AT_ONCE + j;                                                \
                *at = _mm512_fmadd_ps(row[i], column, *at);                                        \
            }                                                                                      \
        }                                                                                          \
    }
        if (some == 1) {
            TAKE(1)
        } else if (some == 2) {
            TAKE(2)
        } else {
            TAKE(AT_ONCE)
        }
#undef TAKE
        float whole[AT_ONCE * AT_ONCE];
        _mm512_storeu_ps(whole, _mm512_mul_ps(_mm512_set1_ps(scale), sums(sum)));
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < some; j++) inner[i * rank + k + j] = whole[i * AT_ONCE + j];
    }
}

/* out[i][c] += sum over k of inner[i][k] * left[k][c], and by * shift[c] if there is one, for the first
 * n <= WIDTH columns of `rows` <= AT_ONCE rows; then its relu, if asked for: of NaN and of -0
 * themselves. Rows are m elements apart, those of left `across`. */
static inline void thin_out(
    float *restrict out, const float *restrict inner, const float *restrict left, int64_t across,
    const float *restrict shift, float by, int64_t m, int64_t n, int rank, int rows, int relu
) {
    __mmask16 lanes[4];
    __m512 sum[AT_ONCE][4];
    for (int j = 0; j < 4; j++) lanes[j] = n > 16 * j ? first_lanes(n - 16 * j) : 0;
    for (int i = 0; i < AT_ONCE; i++)
        for (int j = 0; j < 4; j++) {
            float *to = out + i * m + 16 * j;
            __builtin_prefetch(to + AT_ONCE * m, 1); /* the rows after these */
            sum[i][j] = i < rows ? _mm512_maskz_loadu_ps(lanes[j], to) : _mm512_setzero_ps();
        }
    if (shift != NULL)
        for (int j = 0; j < 4; j++) {
            const __m512 more = _mm512_maskz_loadu_ps(lanes[j], shift + 16 * j);
            for (int i = 0; i < AT_ONCE; i++)
                sum[i][j] = _mm512_fmadd_ps(more, _mm512_set1_ps(by), sum[i][j]);
        }
    for (int k = 0; k < rank; k++) {
        __m512 u[4];
        for (int j = 0; j < 4; j++)
            u[j] = _mm512_maskz_loadu_ps(lanes[j], left + k * across + 16 * j);
        for (int i = 0; i < AT_ONCE; i++) {
            const __m512 a = _mm512_set1_ps(inner[i * rank + k]);
            for (int j = 0; j < 4; j++) sum[i][j] = _mm512_fmadd_ps(a, u[j], sum[i][j]);
        }
    }
    if (relu)
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < 4; j++) sum[i][j] = _mm512_max_ps(_mm512_setzero_ps(), sum[i][j]);
    for (int i = 0; i < AT_ONCE; i++)
        for (int j = 0; j < 4; j++)
            if (i < rows)
                _mm512_mask_storeu_ps(out + i * m + 16 * j, lanes[j], sum[i][j]);
}

/* The first n columns of a left factor, at most WIDTH, in one piece: where they lie, m elements apart,
 * they would share a few sets of the cache. */
static inline const float *
panel_of(float *restrict to, const float *restrict left, int64_t m, int64_t n, int rank) {
    for (int k = 0; k < rank; k++)
        for (int j = 0; j < WIDTH; j += 16) {
            const __mmask16 lanes = n > j ? first_lanes(n - j) : 0;
            _mm512_storeu_ps(to + k * WIDTH + j, _mm512_maskz_loadu_ps(lanes, left + k * m + j));
        }
    return to;
}
#endif

/* Rank that zo_thin takes at most; 0 where it is not better than a BLAS. */
int32_t zo_thin_rank(void) {
#ifdef __AVX512F__
    return MAX_RANK - 1;
#else
    return 0;
#endif
}

typedef struct {
    float *out;
    const float *x, *right, *left, *shift;
    int64_t n, m, rows; /* rows of the batch that share a scale */
    int32_t rank;
    int32_t relu; /* whether out becomes its relu */
    float times, scales[2];
} Thin;

/* out[i] += scale * (x[i] right^T left + times * shift) for the rows begin .. end of a batch: x is n
 * wide, out m, right (rank, n), left (rank, m), shift (m) or NULL. */
void zo_thin(const void *asked, int64_t begin, int64_t end) {
#ifdef __AVX512F__
    const Thin *a = asked;
    const int64_t n = a->n, m = a->m;
    const int rank = a->rank, high = rank > 8, lot = high ? LOT : AT_ONCE;
    float inner[LOT * MAX_RANK], panel[MAX_RANK * WIDTH];
    for (int64_t first = begin, last; first < end; first = last) {
        const int64_t edge = (first / a->rows + 1) * a->rows;
        const float scale = a->scales[first / a->rows];
        last = first + lot < end ? first + lot : end;
        last = last < edge ? last : edge;
        for (int64_t row = first; row < last; row += AT_ONCE) {
            const float *some[AT_ONCE];
            for (int i = 0; i < AT_ONCE; i++)
                some[i] = a->x + (row + i < last ? row + i : row) * n;
            thin_in(inner + (row - first) * rank, some, a->right, n, rank, scale);
        }
        for (int64_t c = 0; c < m; c += WIDTH) {
            const float *left = a->left + c, *shift = a->shift ? a->shift + c : NULL;
            left = high ? panel_of(panel, left, m, m - c, rank) : left;
            for (int64_t row = first; row < last; row += AT_ONCE)
                thin_out(
                    a->out + row * m + c, inner + (row - first) * rank, left, high ? WIDTH : m,
                    shift, a->times * scale, m, m - c, rank,
                    last - row < AT_ONCE ? (int)(last - row) : AT_ONCE, a->relu
                );
        }
    }
#endif
}

#endif
