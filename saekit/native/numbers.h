// Numbers and vectors of the C++ files: bfloat16 is held as uint16_t, arithmetic is float32.
#pragma once

#include <cstdint>
#include <cstring>

constexpr int WIDTH = 16;  // of a vector
typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4)));

inline float to_float(float value) { return value; }

inline float to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t to_bf16(float value) {  // round to nearest even; NaN stays NaN, as does infinity
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return uint16_t((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
}

inline void put(float* out, float value) { *out = value; }

inline void put(uint16_t* out, float value) { *out = to_bf16(value); }

inline Floats load(const float* p) {
    Floats values;
    std::memcpy(&values, p, sizeof values);
    return values;
}

inline Floats load(const uint16_t* p) {
    typedef uint16_t Shorts __attribute__((vector_size(2 * WIDTH)));
    typedef uint32_t Wide __attribute__((vector_size(4 * WIDTH)));
    Shorts bits;
    std::memcpy(&bits, p, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Wide) << 16);
}

inline void store(float* p, Floats values) { std::memcpy(p, &values, sizeof values); }

// Four sums side by side: one alone would wait for each of its additions.
template <class T>
inline float dot(const float* a, const T* b, int64_t d) {
    Floats sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= d; i += 4 * WIDTH)
        for (int j = 0; j < 4; j++) sums[j] += load(a + i + j * WIDTH) * load(b + i + j * WIDTH);
    const Floats together = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = 0;
    for (int j = 0; j < WIDTH; j++) sum += together[j];
    for (; i < d; i++) sum += a[i] * to_float(b[i]);
    return sum;
}

// Rows come from all over a matrix: asked for early, they are in the cache when their turn comes.
template <class T>
inline void fetch(const T* row, int64_t d) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t i = 0; i < d; i += LINE) __builtin_prefetch(row + i, 0, 2);
}

// e^x for x <= 0, relative error below 2e-7; 0 below -87, NaN for NaN (the shift leaves its bits).
inline Floats exp_negative(Floats x) {
    const Ints tiny = x < -87.0f;
    const Floats y = (tiny ? Floats{} : x) * 1.44269504f;
    const Floats shifted = y + 12582912.0f;  // 1.5 * 2^23: its last bits are the rounded y
    const Floats f = (y - (shifted - 12582912.0f)) * 0.693147181f;
    Floats p = f * (1.0f / 720) + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    const Ints scaled = (Ints)p + ((Ints)shifted << 23);
    return tiny ? Floats{} : (Floats)scaled;
}
