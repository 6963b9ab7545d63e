/* Layer normalisation under two sets of weights. No bits are promised: it stands between products,
 * whose sums are the BLAS's own. */
#ifndef ZOLAB_NORM_H
#define ZOLAB_NORM_H

#include <math.h>
#include <stdint.h>

#define LANES 16

typedef struct {
    float *out;
    const float *x;
    const float *weight[2], *bias[2]; /* of the first half of the rows, of the second */
    int64_t n, rows; /* width; rows in all */
    double eps;
} Norm;

/* Sum of x[i] - from, or of its square: in lanes that do not wait for each other. */
static inline float sum_of(const float *restrict x, int64_t n, float from, int square) {
    float lane[LANES] = {0}, all = 0.0f;
    int64_t i = 0;
    if (square) {
        for (; i + LANES <= n; i += LANES)
            for (int j = 0; j < LANES; j++) lane[j] += (x[i + j] - from) * (x[i + j] - from);
        for (; i < n; i++) all += (x[i] - from) * (x[i] - from);
    } else {
        for (; i + LANES <= n; i += LANES)
            for (int j = 0; j < LANES; j++) lane[j] += x[i + j];
        for (; i < n; i++) all += x[i];
    }
    for (int j = 0; j < LANES; j++) all += lane[j];
    return all;
}

static inline void norm_row(
    float *restrict out, const float *restrict x, const float *restrict weight,
    const float *restrict bias, int64_t n, double eps
) {
    const float mean = sum_of(x, n, 0.0f, 0) / (float)n;
    const float spread = sum_of(x, n, mean, 1) / (float)n;
    const float by = (float)(1.0 / sqrt((double)spread + eps));
    for (int64_t i = 0; i < n; i++) out[i] = (x[i] - mean) * by * weight[i] + bias[i];
}

/* Rows begin .. end of a batch, each by the weights of its half. */
void zo_norm(const void *asked, int64_t begin, int64_t end) {
    const Norm *a = asked;
    for (int64_t row = begin; row < end; row++) {
        const int half = 2 * row >= a->rows;
        norm_row(
            a->out + row * a->n, a->x + row * a->n, a->weight[half], a->bias[half], a->n, a->eps
        );
    }
}

#endif
