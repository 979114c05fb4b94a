// Numbers as the loops of the shim load, store and transform them.
#pragma once

#include "processors.h"

#include <c10/util/BFloat16.h>
#include <cstdint>

namespace {

using bfloat16 = c10::BFloat16;

INLINE float load(float x) { return x; }
INLINE float load(bfloat16 x) { return __builtin_bit_cast(float, uint32_t(x.x) << 16); }
INLINE void store(float x, float &place) { place = x; }
// To the nearest, halves to even. No NaN that came from bfloat16s is rounded to a number.
INLINE void store(float x, bfloat16 &place) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    place.x = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e to the power of x, at most 88, to 2 units in the last place; never below 1e-38.
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    // x = n ln 2 + rest; adding 1.5 · 2^23 rounds to a whole number.
    const float shifted = x * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float power = 1.9875691e-4f;
    power = power * rest + 1.3981999e-3f;
    power = power * rest + 8.3334519e-3f;
    power = power * rest + 4.1665796e-2f;
    power = power * rest + 1.6666665e-1f;
    power = power * rest + 5.0000001e-1f;
    power = power * rest * rest + rest + 1.0f;
    const uint32_t exponent = (__builtin_bit_cast(uint32_t, shifted) << 23) + 0x3f800000;
    return power * __builtin_bit_cast(float, exponent);
}

// Near zero by its series, where the quotient would lose digits.
INLINE float hyperbolic_tangent(float x) {
    const float y = x * x;
    float series = -5.7049887e-3f;
    series = series * y + 2.0639089e-2f;
    series = series * y - 5.3739716e-2f;
    series = series * y + 1.3331442e-1f;
    series = series * y - 3.3333282e-1f;
    series = series * y * x + x;
    // At 9 it is 1 in f32.
    const float twice = x > 9.0f ? 18.0f : 2.0f * x;
    return y < 0.39f ? series : 1.0f - 2.0f / (exponential(twice) + 1.0f);
}

} // namespace
