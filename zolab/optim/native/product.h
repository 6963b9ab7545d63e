/* Products of thin factors: bit for bit what zolab.optim.products does. */
#ifndef ZOLAB_PRODUCT_H
#define ZOLAB_PRODUCT_H

#include "terms.h"

#define ROWS 8        /* rows of a product made at once */
#define PANEL 512     /* columns of it where it is not added at once: it stays in the cache */
#define MAX_RANK 256

/* A left factor: element (i, k) is at[i * down + k * across]. */
typedef struct {
    const float *at;
    int64_t down, across;
} Left;

/* Rows `row` to `row` + `rows` of a left factor as doubles, ROWS to a column of it. */
static void widen(double *restrict wide, const Left *left, int64_t row, int rows, int rank) {
    for (int k = 0; k < rank; k++) {
        const float *at = left->at + row * left->down + k * left->across;
        for (int i = 0; i < ROWS; i++)
            wide[k * ROWS + i] = i < rows ? at[i * left->down] : 0.0;
    }
}

/* What becomes of a product: written, or added to float32 weights as a term says. */
typedef struct {
    float *to;      /* the first row's */
    int64_t stride; /* from row to row */
    const Term *term; /* NULL: written */
} Use;

static inline void use1(const Use *use, int i, int j, double sum) {
    float *to = use->to + i * use->stride + j, z = (float)sum + 0.0f;
    if (use->term == NULL) {
        *to = z;
        return;
    }
    const float w = *to * (float)use->term->scale;
    *to = z * (float)use->term->a + w;
}

/* Columns 0 to n of `rows` rows of a product: the sums over k of wide[k][i] * right[k][j]. Factors
 * are so coarse that every sum is exact: neither order nor fusing matters. */
static inline void panel(
    const Use *use, const double *restrict wide, const float *restrict right, int64_t width,
    int rank, int rows, int64_t n
) {
    int64_t j = 0;
#ifdef __AVX512F__
    const __m512 a = _mm512_set1_ps(use->term ? (float)use->term->a : 0.0f);
    const __m512 scale = _mm512_set1_ps(use->term ? (float)use->term->scale : 0.0f);
    for (; j + 16 <= n; j += 16) {
        __m512d low[ROWS], high[ROWS];
        for (int i = 0; i < ROWS; i++) low[i] = high[i] = _mm512_setzero_pd();
        for (int k = 0; k < rank; k++) {
            const float *at = right + k * width + j;
            const __m512d u = _mm512_cvtps_pd(_mm256_loadu_ps(at));
            const __m512d v = _mm512_cvtps_pd(_mm256_loadu_ps(at + 8));
            for (int i = 0; i < ROWS; i++) {
                const __m512d left = _mm512_set1_pd(wide[k * ROWS + i]);
                low[i] = _mm512_fmadd_pd(left, u, low[i]);
                high[i] = _mm512_fmadd_pd(left, v, high[i]);
            }
        }
        /* Written out, because an index that is not known keeps the sums in memory. */
#define USE(i)                                                                                     \
    if (i < rows) {                                                                                \
        float *to = use->to + i * use->stride + j;                                                 \
        __m512 z = _mm512_castpd_ps(_mm512_insertf64x4(                                            \
            _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps(low[i]))),                     \
            _mm256_castps_pd(_mm512_cvtpd_ps(high[i])), 1                                          \
        ));                                                                                        \
        z = _mm512_add_ps(z, _mm512_setzero_ps()); /* a sum of zeros is plus zero */               \
        if (use->term) {                                                                           \
            __builtin_prefetch(to + ROWS * use->stride, 1);                                        \
            z = _mm512_add_ps(                                                                     \
                _mm512_mul_ps(z, a), _mm512_mul_ps(_mm512_loadu_ps(to), scale)                     \
            );                                                                                     \
        }                                                                                          \
        _mm512_storeu_ps(to, z);                                                                   \
    }
        USE(0) USE(1) USE(2) USE(3) USE(4) USE(5) USE(6) USE(7)
#undef USE
    }
#else
    for (; j + 8 <= n; j += 8)
        for (int i = 0; i < rows; i++) {
            double sum[8] = {0};
            for (int k = 0; k < rank; k++) {
                const double left = wide[k * ROWS + i];
                for (int c = 0; c < 8; c++) sum[c] += left * right[k * width + j + c];
            }
            for (int c = 0; c < 8; c++) use1(use, i, (int)(j + c), sum[c]);
        }
#endif
    for (; j < n; j++)
        for (int i = 0; i < rows; i++) {
            double sum = 0.0;
            for (int k = 0; k < rank; k++) sum += wide[k * ROWS + i] * right[k * width + j];
            use1(use, i, (int)j, sum);
        }
}

#endif
