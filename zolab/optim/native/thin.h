/* The part of a linear layer's output that a perturbation of low rank adds. No bits are promised: it
 * stands beside a matrix product, whose sums are the BLAS's own. */
#ifndef ZOLAB_THIN_H
#define ZOLAB_THIN_H

#include "product.h"

#ifdef __AVX512F__
#define AT_ONCE 4 /* rows of the batch, and columns of a factor, that share what is loaded */
#define LOT 32    /* rows that share a panel of a factor in the first-level cache, at a high rank */

static inline __mmask16 first_lanes(int64_t n) {
    return n >= 16 ? 0xFFFF : (__mmask16)((1u << n) - 1);
}

/* inner[i][k] = scale * (x[i] . right[k]) for AT_ONCE rows of x; those after the last repeat it. */
static void thin_in(
    float *restrict inner, const float *const *x, const float *restrict right, int64_t n, int rank,
    float scale
) {
    for (int k = 0; k < rank; k += AT_ONCE) {
        const int some = rank - k < AT_ONCE ? rank - k : AT_ONCE;
        const float *v[AT_ONCE];
        __m512 sum[AT_ONCE][AT_ONCE];
        for (int j = 0; j < AT_ONCE; j++) {
            v[j] = right + (k + (j < some ? j : 0)) * n;
            for (int i = 0; i < AT_ONCE; i++) sum[i][j] = _mm512_setzero_ps();
        }
#define TAKE(COUNT)                                                                                \
    for (int64_t c = 0; c < n; c += 16) {                                                          \
        const __mmask16 lanes = first_lanes(n - c);                                                \
        __m512 row[AT_ONCE];                                                                       \
        for (int i = 0; i < AT_ONCE; i++) {                                                        \
            row[i] = _mm512_maskz_loadu_ps(lanes, x[i] + c);                                       \
            if (k == 0)                                                                            \
                __builtin_prefetch(x[i] + AT_ONCE * n + c);                                        \
        }                                                                                          \
        for (int j = 0; j < COUNT; j++) {                                                          \
            const __m512 column = _mm512_maskz_loadu_ps(lanes, v[j] + c);                          \
            for (int i = 0; i < AT_ONCE; i++)                                                      \
                sum[i][j] = _mm512_fmadd_ps(row[i], column, sum[i][j]);                            \
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
        /* Of all of them, because an index that is not known would keep the sums in memory. */
        float whole[AT_ONCE][AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < AT_ONCE; j++) whole[i][j] = scale * _mm512_reduce_add_ps(sum[i][j]);
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < some; j++) inner[i * rank + k + j] = whole[i][j];
    }
}

/* out[i][c] += sum over k of inner[i][k] * left[k][c], and by * shift[c] if there is one, for n <= 64
 * columns of `rows` <= AT_ONCE rows; then its relu, if asked for: of NaN and of -0 themselves. */
static inline void thin_out(
    float *restrict out, const float *restrict inner, const float *restrict left,
    const float *restrict shift, float by, int64_t m, int64_t n, int rank, int rows,
    int relu
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
            u[j] = _mm512_maskz_loadu_ps(lanes[j], left + k * m + 16 * j);
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
#endif

#endif
