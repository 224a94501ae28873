// BF16 numbers in and out of 16 float32 lanes, and the exponential.

#pragma once

#include <immintrin.h>

#include <cstdint>

using bf16 = uint16_t;

constexpr int64_t PANEL = 32;     // columns of a result in two vectors
constexpr int64_t MAX_ROWS = 12;  // 12 rows x 2 vectors of sums leave 8 registers of 32

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads for so many products: below some microseconds of work, waiting for one another costs more.
inline int useful(int threads, int64_t products) { return products < (1 << 17) ? 1 : threads; }

inline __mmask16 first(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1;
}

inline __m512 load_bf16(const bf16* p, __mmask16 mask) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store_bf16(bf16* p, __m512 value, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

// e^x to about 1e-7: 2^n by its exponent times a polynomial in the rest. NaN stays NaN.
inline __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.f), _mm512_min_ps(_mm512_set1_ps(104.f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 y = _mm512_set1_ps(1.f / 5040);
    for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
    return _mm512_scalef_ps(y, n);
}
