/* 16-bit weights as float32 and back: bit for bit what torch and zolab.optim.rounding do. */
#ifndef ZOLAB_STORAGE_H
#define ZOLAB_STORAGE_H

#include "noise.h"

enum { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };

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

#endif
