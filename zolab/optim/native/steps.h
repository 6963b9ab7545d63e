/* Updates by moments: what zolab.optim.moments does, operation by operation, in float32. */
#ifndef ZOLAB_STEPS_H
#define ZOLAB_STEPS_H

#include "noise.h"
#include "source.h"

typedef struct {
    double c;
    uint64_t seed;
    const float *z; /* z of these weights if it was kept, else NULL */
} Probe;

/* One estimate g = sum of c z, taken into the moments. */
typedef struct {
    const Probe *probes;
    int32_t count;
    int32_t first, second; /* which moments look */
    double decay1, share1, decay2, share2;
} Look;

typedef struct {
    float *first, *second; /* moments, NULL where none is kept: it begins at 0 */
    const Look *looks;
    int32_t count;
    int32_t divides, root, sign;
    double floor, times, plus; /* of the divisor */
} Step;

static void estimate(Source *source, const Look *look, Tile tile) {
    float *restrict g = source->g;
    const int n = tile.n;
    for (int j = 0; j < look->count; j++) {
        const Probe *probe = look->probes + j;
        const float *restrict z = direction(source, probe->z, probe->seed, tile);
        const float c = (float)probe->c;
        if (j == 0)
            for (int i = 0; i < n; i++) g[i] = z[i] * c;
        else
            for (int i = 0; i < n; i++) g[i] = z[i] * c + g[i];
    }
    if (source->live != NULL)
        for (int i = 0; i < n; i++)
            g[i] = float_of(bits_of(g[i]) & (0u - (uint32_t)(source->live[i] != 0)));
}

static void blend(float *restrict m, const float *restrict g, float decay, float share, int n) {
    for (int i = 0; i < n; i++) m[i] = m[i] * decay + g[i] * share;
}

static void blend_squares(
    float *restrict v, const float *restrict g, float decay, float share, int n
) {
    for (int i = 0; i < n; i++) v[i] = v[i] * decay + g[i] * g[i] * share;
}

/* m / (max(v, floor) * times + plus), with a root after the maximum. A NaN stays one. */
static void divide(
    float *restrict move, const float *restrict m, const float *restrict v, const Step *step, int n
) {
    const float low = (float)step->floor, times = (float)step->times, plus = (float)step->plus;
    if (step->root)
        for (int i = 0; i < n; i++)
            move[i] = m[i] / (sqrtf(v[i] < low ? low : v[i]) * times + plus);
    else
        for (int i = 0; i < n; i++) move[i] = m[i] / ((v[i] < low ? low : v[i]) * times + plus);
}

/* The move of a tile, after its moments took in the estimates. */
static const float *moved(Source *source, const Step *step, Tile tile) {
    const int n = tile.n;
    float *m = step->first ? step->first + tile.at : source->m;
    float *v = step->second ? step->second + tile.at : source->v;
    if (step->first == NULL)
        memset(m, 0, (size_t)n * sizeof *m);
    if (step->second == NULL)
        memset(v, 0, (size_t)n * sizeof *v);
    for (const Look *look = step->looks; look < step->looks + step->count; look++) {
        estimate(source, look, tile);
        if (look->second)
            blend_squares(v, source->g, (float)look->decay2, (float)look->share2, n);
        if (look->first)
            blend(m, source->g, (float)look->decay1, (float)look->share1, n);
    }
    if (step->sign)
        for (int i = 0; i < n; i++) source->move[i] = (float)((m[i] > 0.0f) - (m[i] < 0.0f));
    else if (step->divides)
        divide(source->move, m, v, step, n);
    else
        return m;
    return source->move;
}

#endif
