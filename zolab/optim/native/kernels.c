/* Native sweeps over weights on the CPU: bit for bit what zolab.optim.backend does.
 *
 * Plain C that a compiler vectorises, no intrinsics: every loop runs over independent lanes. (Hand-
 * written AVX-512 was measured at 64 ms per 100M normals, the same loops in plain C at 66.) Compile
 * with -ffp-contract=off and -fno-strict-aliasing, and never with -ffast-math.
 *
 * A tile is a run of elements that lies between two multiples of TILE, counted from the start of the
 * parameter. It stays in the first-level cache while all terms pass over it, so a sweep moves the
 * weights through memory once; and counters within a tile share their high word.
 */
#include <stddef.h>

#include "masks.h"
#include "noise.h"
#include "product.h"
#include "source.h"
#include "sparse.h"
#include "steps.h"
#include "storage.h"
#include "terms.h"
#include "thin.h"

#define ABI 5

/* The entry points. Pointers are to element `offset` of the parameter, kept directions as well. */

int32_t zo_abi(void) {
    return ABI;
}

int32_t zo_tile(void) {
    return TILE;
}

/* Four words of one counter, for comparison with the published answers. */
void zo_philox(uint64_t block, uint64_t seed, uint32_t pid, uint32_t stream, uint32_t *out) {
    block_words(out, block, 1, seed, pid, stream);
}

/* out[begin .. end] = elements offset + begin .. offset + end of a stream. */
void zo_fill(
    int32_t kind, float *out, int64_t begin, int64_t end, uint64_t offset, uint64_t seed,
    uint32_t pid, uint32_t stream, const float *table
) {
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end))
        noise_tile(kind, out + tile.at, tile.first, tile.n, seed, pid, stream, table);
}

/* out[begin .. end][width] = rows index[begin .. end] of a parameter that is `width` wide. */
void zo_rows(
    int32_t kind, float *out, const int64_t *index, int64_t begin, int64_t end, int64_t width,
    uint64_t seed, uint32_t pid, uint32_t stream, const float *table
) {
    for (int64_t row = begin; row < end; row++)
        zo_fill(
            kind, out + row * width, 0, width, (uint64_t)(index[row] * width), seed, pid, stream,
            table
        );
}

/* Apply terms to weight[begin .. end]. A mask of bits begins with the parameter. */
void zo_sweep(
    int32_t kind, int32_t dtype, void *weight, const Mask *mask, int64_t begin, int64_t end,
    uint64_t offset, uint32_t pid, const Term *terms, int32_t count, const float *table
) {
    uint8_t before[TILE], after[TILE];
    uint16_t spare[TILE];
    Source source;
    source.kind = kind;
    source.pid = pid;
    source.table = table;
    const int split = mask->limit ? mask->split : count, steps = has_step(terms, count);
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end)) {
        if (mask->form == PLACES && !steps) {
            int few;
            const uint16_t *places = places_of(mask, spare, tile, &few);
            fetch_ahead(mask, (char *)weight, dtype, tile, end);
            part_places(&source, dtype, weight, places, few, tile, terms, count);
            continue;
        }
        if (split > 0)
            part(&source, dtype, weight, held(mask, before, tile), tile, terms, split);
        if (mask->limit) {
            decide(after, mask, dtype, weight, tile);
            hold(mask, after, tile);
            part(&source, dtype, weight, after, tile, terms + split, count - split);
        }
    }
}

/* plus, minus [begin .. end] = weight +/- eps z. */
void zo_pair(
    int32_t kind, int32_t dtype, const void *weight, const Mask *mask, int64_t begin, int64_t end,
    uint64_t offset, uint32_t pid, uint64_t seed, const float *kept, double eps, void *plus,
    void *minus, const float *table
) {
    float work[TILE], step[TILE], up[TILE], down[TILE];
    uint8_t live[TILE];
    Source source;
    source.kind = kind;
    source.pid = pid;
    source.table = table;
    if (mask->form == PLACES) {
        pair_places(
            &source, dtype, weight, mask, begin, end, offset, kept, seed, eps, plus, minus
        );
        return;
    }
    for (Tile tile = tile_at(offset, begin, end); tile.n > 0;
         tile = tile_at(offset, tile.at + tile.n, end)) {
        const int n = tile.n;
        const int64_t at = tile.at;
        const uint8_t *chosen = live;
        if (mask->limit)
            decide(live, mask, dtype, weight, tile);
        else
            chosen = held(mask, live, tile);
        source.has_z = 0;
        source.live = chosen;
        source.index = NULL;
        const float *z = direction(&source, kept, seed, tile), scale = (float)eps;
        /* The specification adds a zero where the mask is off, which turns -0 into +0 in `plus`. */
        if (chosen == NULL)
            for (int i = 0; i < n; i++) step[i] = z[i] * scale;
        else
            times_live(step, chosen, z, scale, n);
        if (dtype == FLOAT64) {
            const double *w = (const double *)weight + at;
            double *p = (double *)plus + at, *m = (double *)minus + at;
            /* Wide weights take the product in float64 as well. */
            for (int i = 0; i < n; i++) {
                const double move = chosen == NULL || chosen[i] ? (double)z[i] * eps : 0.0;
                p[i] = w[i] + move;
                m[i] = w[i] - move;
            }
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

int32_t zo_max_rank(void) {
    return MAX_RANK;
}

/* out[begin .. end][width] = rows of left @ right; left has `rank` columns, right as many rows. */
void zo_product(
    float *out, const float *left, const float *right, int32_t rank, int64_t width, int64_t begin,
    int64_t end
) {
    double wide[MAX_RANK * ROWS];
    for (int64_t row = begin; row < end; row += ROWS) {
        const int rows = (int)(end - row < ROWS ? end - row : ROWS);
        const Use use = {out + row * width, width, NULL};
        widen(wide, left, row, rows, rank);
        panel(&use, wide, right, width, rank, rows, width);
    }
}

/* One term on some rows of a weight; the product goes by way of the cache. */
static void term_product(
    Source *source, int dtype, char *weight, int64_t row, int rows, int64_t width, Term term,
    const double *wide, const float *right, int rank
) {
    float z[ROWS * PANEL];
    const Use use = {z, PANEL, NULL};
    const int size = dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2;
    for (int64_t at = 0; at < width; at += PANEL) {
        const int n = (int)(width - at < PANEL ? width - at : PANEL);
        if (term.a != 0.0)
            panel(&use, wide, right + at, width, rank, rows, n);
        for (int i = 0; i < rows; i++) {
            const int64_t first = (row + i) * width + at;
            const Tile tile = {(uint64_t)first, 0, n};
            term.z = z + i * PANEL;
            part(source, dtype, weight + size * first, NULL, tile, &term, 1);
        }
    }
}

/* Apply terms to rows begin .. end of a weight `width` wide; z of each is left @ right, see above. */
void zo_sweep_product(
    int32_t dtype, void *weight, int64_t begin, int64_t end, int64_t width, uint32_t pid,
    const Term *terms, int32_t count, const float *const *left, const float *const *right,
    int32_t rank
) {
    double wide[MAX_RANK * ROWS];
    Source source;
    source.pid = pid;
    for (int64_t row = begin; row < end; row += ROWS) {
        const int rows = (int)(end - row < ROWS ? end - row : ROWS);
        for (int t = 0; t < count; t++) {
            const Term *term = terms + t;
            if (term->a != 0.0)
                widen(wide, left[t], row, rows, rank);
            if (term->a != 0.0 && dtype == FLOAT32) {
                const Use use = {(float *)weight + row * width, width, term};
                panel(&use, wide, right[t], width, rank, rows, width);
            } else {
                term_product(
                    &source, dtype, weight, row, rows, width, *term, wide, right[t], rank
                );
            }
        }
    }
}

/* Rank that zo_thin takes at most; 0 where it is not better than a BLAS. */
int32_t zo_thin_rank(void) {
#ifdef __AVX512F__
    return MAX_RANK - 1;
#else
    return 0;
#endif
}

/* out[i] += scale * (x[i] right^T, 1) left for the rows begin .. end of a batch: x is n wide, out m,
 * right (rank, n), left (columns, m), where columns is rank or one more: what every row gets. */
void zo_thin(
    float *out, const float *x, const float *right, const float *left, int64_t begin, int64_t end,
    int64_t n, int64_t m, int32_t rank, int32_t columns, float scale
) {
#ifdef __AVX512F__
    float inner[LOT * MAX_RANK];
    const int lot = rank > 8 ? LOT : AT_ONCE;
    for (int64_t first = begin; first < end; first += lot) {
        const int64_t last = end - first < lot ? end : first + lot;
        for (int64_t row = first; row < last; row += AT_ONCE) {
            float *those = inner + (row - first) * columns;
            const float *some[AT_ONCE];
            for (int i = 0; i < AT_ONCE; i++) {
                some[i] = x + (row + i < last ? row + i : row) * n;
                those[i * columns + columns - 1] = scale;
            }
            thin_in(those, some, right, n, rank, columns, scale);
        }
        for (int64_t c = 0; c < m; c += 64)
            for (int64_t row = first; row < last; row += AT_ONCE)
                thin_out(
                    out + row * m + c, inner + (row - first) * columns, left + c, m, m - c, columns,
                    last - row < AT_ONCE ? (int)(last - row) : AT_ONCE
                );
    }
#endif
}
