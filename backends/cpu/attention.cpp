// Attention over pages and the router's product, token by token: a token's result does not depend,
// in any bit, on what else is in the step.

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "lanes.h"

namespace {

// Attention of one token over the cached keys of its sequence, all query heads of one group.
struct Attend {
    const bf16 *q, *k, *v;   // q (t, heads, c); pages (page, slot, group, c)
    const int32_t* pages;    // of this sequence
    int64_t slots, groups, heads, c, length;
    float scale;

    int64_t row(int64_t group, int64_t l) const {
        return ((pages[l / slots] * slots + l % slots) * groups + group) * c;
    }
};

float dot(const bf16* a, const bf16* b, int64_t c) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < c; i += 32)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + i),
                               (__m512bh)_mm512_loadu_si512(b + i));
    return _mm512_reduce_add_ps(sum);
}

// x becomes e^(x - max); returns 1 / their sum.
float softmax(float* x, int64_t count) {
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16)
        top = _mm512_mask_max_ps(top, first(count - i), top,
                                 _mm512_maskz_loadu_ps(first(count - i), x + i));
    top = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = first(count - i);
        __m512 e = exp_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), top));
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
        _mm512_mask_storeu_ps(x + i, mask, e);
    }
    return 1 / _mm512_reduce_add_ps(sum);
}

// 32 columns of p @ v for HEADS heads; p (HEADS, length).
template <int HEADS>
void weigh(const Attend& a, int64_t group, int64_t column, const float* p, float (*out)[PANEL]) {
    __m512 low[HEADS], high[HEADS];
    for (int i = 0; i < HEADS; ++i) low[i] = high[i] = _mm512_setzero_ps();
    for (int64_t l = 0; l < a.length; ++l) {
        const bf16* v = a.v + a.row(group, l) + column;
        __m512 v_low = load_bf16(v, 0xffff), v_high = load_bf16(v + 16, 0xffff);
#pragma GCC unroll 12
        for (int i = 0; i < HEADS; ++i) {
            __m512 weight = _mm512_set1_ps(p[i * a.length + l]);
            low[i] = _mm512_fmadd_ps(weight, v_low, low[i]);
            high[i] = _mm512_fmadd_ps(weight, v_high, high[i]);
        }
    }
    for (int i = 0; i < HEADS; ++i) {
        _mm512_storeu_ps(out[i], low[i]);
        _mm512_storeu_ps(out[i] + 16, high[i]);
    }
}

using Weigh = void (*)(const Attend&, int64_t, int64_t, const float*, float (*)[PANEL]);

template <int... I>
Weigh choose_weigh(int64_t heads, std::integer_sequence<int, I...>) {
    static constexpr Weigh table[] = {weigh<I + 1>...};
    return table[heads - 1];
}

// Heads [from, from + count) of a group, count at most MAX_ROWS, for one token.
void attend_heads(const Attend& a, int64_t group, int64_t from, int64_t count, float* p,
                  bf16* out) {
    int64_t head = group * (a.heads / a.groups) + from;
    float inverse[MAX_ROWS], sums[MAX_ROWS][PANEL];
    for (int64_t l = 0; l < a.length; ++l)
        for (int64_t i = 0; i < count; ++i)
            p[i * a.length + l] = a.scale * dot(a.q + (head + i) * a.c, a.k + a.row(group, l), a.c);
    for (int64_t i = 0; i < count; ++i) inverse[i] = softmax(p + i * a.length, a.length);
    for (int64_t column = 0; column < a.c; column += PANEL) {
        choose_weigh(count, std::make_integer_sequence<int, MAX_ROWS>())(a, group, column, p, sums);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t c = 0; c < PANEL; c += 16)
                store_bf16(out + (head + i) * a.c + column + c,
                           _mm512_mul_ps(_mm512_loadu_ps(sums[i] + c), _mm512_set1_ps(inverse[i])),
                           0xffff);
    }
}

}  // namespace

extern "C" {

// Router scores out (t, e) = x (t, d) BF16 @ gate (e, d).T in float32.
void scores(const bf16* x, const float* gate, float* out, int64_t t, int64_t e, int64_t d,
            int threads) {
    constexpr int64_t AT_ONCE = 8;
    int64_t pieces = ceil_div(e, AT_ONCE);
#pragma omp parallel for num_threads(useful(threads, t * e * d)) schedule(static)
    for (int64_t i = 0; i < t * pieces; ++i) {
        int64_t token = i / pieces, from = i % pieces * AT_ONCE;
        int64_t count = std::min(AT_ONCE, e - from);
        __m512 sums[AT_ONCE];
        for (__m512& sum : sums) sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < d; c += 16) {
            __mmask16 mask = first(d - c);
            __m512 column = load_bf16(x + token * d + c, mask);
#pragma GCC unroll 8
            for (int64_t j = 0; j < AT_ONCE; ++j) {
                const float* row = gate + (from + std::min(j, count - 1)) * d;
                sums[j] = _mm512_fmadd_ps(column, _mm512_maskz_loadu_ps(mask, row + c), sums[j]);
            }
        }
        for (int64_t j = 0; j < count; ++j)
            out[token * e + from + j] = _mm512_reduce_add_ps(sums[j]);
    }
}

// Attention of tokens (t) over pages; c a multiple of 32. Token i sees the first lengths[i] keys
// of the sequence whose pages stand in row sequence[i] of the table (b, width). Each token is
// computed by itself, so nothing else in the step changes it.
void attend(const bf16* q, const bf16* k, const bf16* v, const int32_t* table,
            const int32_t* sequence, const int32_t* lengths, bf16* out, int64_t t, int64_t width,
            int64_t slots, int64_t groups, int64_t heads, int64_t c, float scale, int threads) {
    int64_t longest = t ? *std::max_element(lengths, lengths + t) : 0;
    int64_t each = heads / groups, pieces = ceil_div(each, MAX_ROWS);
#pragma omp parallel num_threads(useful(threads, t * heads * longest * c))
    {
        std::vector<float> p(longest * std::min(each, MAX_ROWS));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < t * groups * pieces; ++i) {
            int64_t token = i / (groups * pieces), group = i / pieces % groups;
            int64_t from = i % pieces * MAX_ROWS;
            Attend a{q + token * heads * c, k, v, table + sequence[token] * width, slots, groups,
                     heads, c, lengths[token], scale};
            attend_heads(a, group, from, std::min(MAX_ROWS, each - from), p.data(),
                         out + token * heads * c);
        }
    }
}

}  // extern "C"
