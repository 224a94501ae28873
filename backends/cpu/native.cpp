// BF16 matrix products and the routed mixture of experts with AVX512-BF16, for few rows at the
// speed of memory and for many at that of the multipliers.
//
// Layout of a packed weight (N, R), zeros where N or R are padded:
//     [panel of 32 outputs][pair of inputs][32 outputs][2 inputs]
// so that one instruction (VDPBF16PS, Intel's instruction set reference) multiplies a pair of
// inputs with 16 outputs, sums stay in their lanes, and a panel is read once from end to end.
// Layout of a block of up to 12 rows of activations: [pair of inputs][row][2 inputs].
//
// Every result is summed over its inputs in their order, in one float32 accumulator, whatever
// the number of rows: a row's result does not depend, in any bit, on which rows are beside it.

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t AHEAD = 16 * 2 * PANEL;  // numbers to prefetch ahead: 2 KB
constexpr int64_t FEW_ROWS = 4;            // up to here memory is the limit: prefetch
constexpr int64_t HUGE_PAGE = 1 << 21;

struct Shape {
    int64_t n, r;
    int64_t pairs() const { return ceil_div(r, 2); }
    int64_t panels() const { return ceil_div(n, PANEL); }
    int64_t panel_size() const { return pairs() * PANEL * 2; }
    int64_t size() const { return panels() * panel_size(); }
};

// Rows [begin, begin + rows) of the sorted rows; all of one expert (0 in a plain product).
struct Block {
    int64_t expert, begin, rows;
};

// Nearly equal blocks, so that none is left with a single row.
void add_blocks(std::vector<Block>& blocks, int64_t expert, int64_t begin, int64_t rows) {
    int64_t count = ceil_div(rows, MAX_ROWS);
    for (int64_t i = 0; i < count; ++i) {
        int64_t from = rows * i / count, to = rows * (i + 1) / count;
        blocks.push_back({expert, begin + from, to - from});
    }
}

// Sums of ROWS rows with one panel.
template <int ROWS>
void multiply(const bf16* x, const bf16* w, int64_t pairs, float (*out)[PANEL]) {
    __m512 low[ROWS], high[ROWS];
    for (int i = 0; i < ROWS; ++i) low[i] = high[i] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int64_t k = 0; k < pairs; ++k) {
        const bf16* column = w + k * PANEL * 2;
        if constexpr (ROWS <= FEW_ROWS) {
            _mm_prefetch(reinterpret_cast<const char*>(column + AHEAD), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(column + AHEAD + PANEL), _MM_HINT_T0);
        }
        auto w_low = (__m512bh)_mm512_loadu_si512(column);
        auto w_high = (__m512bh)_mm512_loadu_si512(column + PANEL);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            int pair;
            std::memcpy(&pair, x + (k * ROWS + i) * 2, sizeof pair);
            auto both = (__m512bh)_mm512_set1_epi32(pair);
            low[i] = _mm512_dpbf16_ps(low[i], both, w_low);
            high[i] = _mm512_dpbf16_ps(high[i], both, w_high);
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        _mm512_storeu_ps(out[i], low[i]);
        _mm512_storeu_ps(out[i] + 16, high[i]);
    }
}

using Multiply = void (*)(const bf16*, const bf16*, int64_t, float (*)[PANEL]);

template <int... I>
Multiply choose(int64_t rows, std::integer_sequence<int, I...>) {
    static constexpr Multiply table[] = {multiply<I + 1>...};
    return table[rows - 1];
}

void multiply_block(int64_t rows, const bf16* x, const bf16* w, int64_t pairs,
                    float (*out)[PANEL]) {
    choose(rows, std::make_integer_sequence<int, MAX_ROWS>())(x, w, pairs, out);
}

__m512 silu(__m512 x) {
    __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.f)));
}

// Interleave rows[i] of x into a block; `row` maps a sorted row to a row of x.
template <class Row>
void gather(const bf16* x, int64_t r, const Block& b, Row row, bf16* out) {
    int64_t pairs = ceil_div(r, 2), whole = r / 2;
    for (int64_t i = 0; i < b.rows; ++i) {
        const bf16* from = x + row(b.begin + i) * r;
        bf16* to = out + i * 2;
        for (int64_t k = 0; k < whole; ++k) std::memcpy(to + k * b.rows * 2, from + 2 * k, 4);
        if (pairs > whole) {
            to[whole * b.rows * 2] = from[r - 1];
            to[whole * b.rows * 2 + 1] = 0;
        }
    }
}

// w: the rows of this panel alone
void pack_panel(const bf16* w, Shape s, int64_t panel, bf16* out) {
    int64_t rows = std::min(PANEL, s.n - panel * PANEL), whole = s.r / 2;
    if (rows < PANEL || s.r % 2) std::memset(out, 0, s.panel_size() * sizeof(bf16));
    for (int64_t k0 = 0; k0 < whole; k0 += 16) {
        int64_t k1 = std::min(k0 + 16, whole);
        for (int64_t i = 0; i < rows; ++i) {
            const bf16* from = w + i * s.r;
            for (int64_t k = k0; k < k1; ++k)
                std::memcpy(out + (k * PANEL + i) * 2, from + 2 * k, 4);
        }
    }
    if (s.r % 2)
        for (int64_t i = 0; i < rows; ++i)
            out[(whole * PANEL + i) * 2] = w[(i + 1) * s.r - 1];
}

void dequantize(const uint8_t* codes, const float* values, float scale, int64_t count, bf16* out) {
    for (int64_t c = 0; c < count; c += 16) {
        __mmask16 mask = first(count - c);
        __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, codes + c));
        __m512 value = _mm512_i32gather_ps(code, values, 4);
        store_bf16(out + c, _mm512_mul_ps(value, _mm512_set1_ps(scale)), mask);
    }
}

// The rows of all tokens' choices, sorted by expert.
struct Routed {
    const float* weights;
    const int32_t* experts;
    int64_t tokens, k;
    std::vector<int64_t> order;  // sorted row -> token * k + choice
    std::vector<int64_t> place;  // token * k + choice -> sorted row
    std::vector<Block> blocks;
};

Routed sort_by_expert(const float* weights, const int32_t* experts, int64_t tokens, int64_t k,
                      int64_t count) {
    Routed r{weights, experts, tokens, k, {}, {}, {}};
    std::vector<int64_t> begin(count + 1, 0);
    for (int64_t i = 0; i < tokens * k; ++i) ++begin[experts[i] + 1];
    for (int64_t e = 0; e < count; ++e) {
        add_blocks(r.blocks, e, begin[e], begin[e + 1]);
        begin[e + 1] += begin[e];
    }
    r.order.resize(tokens * k);
    r.place.resize(tokens * k);
    for (int64_t i = 0; i < tokens * k; ++i) {
        int64_t row = begin[experts[i]]++;
        r.order[row] = i;
        r.place[i] = row;
    }
    return r;
}

// silu(gate) * up for 32 columns of the hidden layer, into the layout of the block.
// Where F is no multiple of 32 these columns of `up` lie in two panels.
void gate_up_panel(const Block& b, const bf16* x, const bf16* w, Shape s, int64_t panel,
                   bf16* hidden) {
    int64_t f = s.n / 2, column = f + panel * PANEL, shift = column % PANEL;
    float gate[MAX_ROWS][PANEL], up[2][MAX_ROWS][PANEL];
    multiply_block(b.rows, x, w + panel * s.panel_size(), s.pairs(), gate);
    for (int64_t i = 0; i < (shift ? 2 : 1) && column / PANEL + i < s.panels(); ++i)
        multiply_block(b.rows, x, w + (column / PANEL + i) * s.panel_size(), s.pairs(), up[i]);
    int64_t width = std::min(PANEL, f - panel * PANEL);
    for (int64_t i = 0; i < b.rows; ++i) {
        float joined[2 * PANEL];
        std::memcpy(joined, up[0][i], sizeof up[0][i]);
        if (shift) std::memcpy(joined + PANEL, up[1][i], sizeof up[1][i]);
        bf16 row[PANEL + 1] = {};  // an odd F is padded with a zero
        for (int64_t c = 0; c < width; c += 16)
            store_bf16(row + c,
                       _mm512_mul_ps(silu(_mm512_loadu_ps(gate[i] + c)),
                                     _mm512_loadu_ps(joined + shift + c)),
                       first(width - c));
        for (int64_t c = 0; c < width; c += 2)
            std::memcpy(hidden + ((panel * PANEL + c) / 2 * b.rows + i) * 2, row + c, 4);
    }
}

// sum over a token's choices, in their order
void combine(const Routed& routed, int64_t token, const bf16* y, int64_t d, bf16* out) {
    const float* weights = routed.weights + token * routed.k;
    const int64_t* place = routed.place.data() + token * routed.k;
    for (int64_t c = 0; c < d; c += 16) {
        __mmask16 mask = first(d - c);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < routed.k; ++i)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[i]), load_bf16(y + place[i] * d + c, mask),
                                  sum);
        store_bf16(out + token * d + c, sum, mask);
    }
}

void store_rows(const Block& b, float (*sums)[PANEL], const bf16* bias, int64_t n, int64_t panel,
                bf16* out) {
    for (int64_t i = 0; i < b.rows; ++i)
        for (int64_t c = 0; c < PANEL; c += 16) {
            int64_t column = panel * PANEL + c;
            __mmask16 mask = first(n - column);
            if (!mask) break;
            __m512 sum = _mm512_loadu_ps(sums[i] + c);
            if (bias) sum = _mm512_add_ps(sum, load_bf16(bias + column, mask));
            store_bf16(out + (b.begin + i) * n + column, sum, mask);
        }
}

// An expert's blocks are neighbours: dealt out panel by panel, each panel is read once.
// Up to so many bytes of activations, they stay in the cache from one panel to the next.
struct Group {
    int64_t first, last;  // blocks
};

constexpr int64_t GROUP_BYTES = 384 << 10;

std::vector<Group> group_by_expert(const std::vector<Block>& blocks, int64_t width) {
    int64_t most = std::max<int64_t>(1, GROUP_BYTES / (MAX_ROWS * width * sizeof(bf16)));
    std::vector<Group> groups;
    for (int64_t i = 0; i < (int64_t)blocks.size(); ++i) {
        bool open = !groups.empty() && groups.back().last - groups.back().first < most &&
                    blocks[groups.back().first].expert == blocks[i].expert;
        if (open)
            groups.back().last = i + 1;
        else
            groups.push_back({i, i + 1});
    }
    return groups;
}

}  // namespace

extern "C" {

int64_t packed_size(int64_t n, int64_t r) { return Shape{n, r}.size(); }

// Ask for huge pages before memory is first touched: a panel spans many small ones.
void advise(void* p, int64_t bytes) {
    auto begin = (reinterpret_cast<uintptr_t>(p) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    auto end = (reinterpret_cast<uintptr_t>(p) + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// w: (count, n, r). out: count * packed_size(n, r).
void pack(const bf16* w, int64_t count, int64_t n, int64_t r, bf16* out, int threads) {
    Shape s{n, r};
    int64_t panels = s.panels();
#pragma omp parallel for num_threads(useful(threads, count * n * r)) schedule(static)
    for (int64_t i = 0; i < count * panels; ++i)
        pack_panel(w + (i / panels * n + i % panels * PANEL) * r, s, i % panels,
                   out + i * s.panel_size());
}

// As `pack`, of codes: a weight is values[code] * the scale of its block of `rows` and `columns`,
// rounded once. scale: (count, ceil(n / rows), ceil(r / columns)).
void pack_coded(const uint8_t* w, const float* values, const float* scale, int64_t rows,
                int64_t columns, int64_t count, int64_t n, int64_t r, bf16* out, int threads) {
    Shape s{n, r};
    int64_t panels = s.panels(), down = ceil_div(n, rows), across = ceil_div(r, columns);
#pragma omp parallel num_threads(useful(threads, count * n * r))
    {
        std::vector<bf16> plain(PANEL * r);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * panels; ++i) {
            int64_t e = i / panels, begin = i % panels * PANEL;
            for (int64_t row = begin; row < std::min(begin + PANEL, n); ++row)
                for (int64_t b = 0; b < across; ++b)
                    dequantize(w + (e * n + row) * r + b * columns, values,
                               scale[(e * down + row / rows) * across + b],
                               std::min(columns, r - b * columns),
                               plain.data() + (row - begin) * r + b * columns);
            pack_panel(plain.data(), s, i % panels, out + i * s.panel_size());
        }
    }
}

// out (t, n) = x (t, r) @ w.T + bias; bias may be null.
void linear(const bf16* x, const bf16* w, const bf16* bias, bf16* out, int64_t t, int64_t n,
            int64_t r, int threads) {
    Shape s{n, r};
    std::vector<Block> blocks;
    add_blocks(blocks, 0, 0, t);
    int64_t panels = s.panels(), width = s.pairs() * 2;
    std::vector<Group> groups = group_by_expert(blocks, width);
    int64_t count = groups.size();
    bf16* gathered = new bf16[t * width];
#pragma omp parallel num_threads(useful(threads, t * n * r))
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < (int64_t)blocks.size(); ++b)
            gather(x, r, blocks[b], [](int64_t row) { return row; },
                   gathered + blocks[b].begin * width);
#pragma omp for schedule(dynamic, 2)
        for (int64_t i = 0; i < count * panels; ++i)
            for (int64_t b = groups[i / panels].first; b < groups[i / panels].last; ++b) {
                float sums[MAX_ROWS][PANEL];
                int64_t panel = i % panels;
                multiply_block(blocks[b].rows, gathered + blocks[b].begin * width,
                               w + panel * s.panel_size(), s.pairs(), sums);
                store_rows(blocks[b], sums, bias, n, panel, out);
            }
    }
    delete[] gathered;
}

// The mixture: gate_up (count, 2f, d) and down (count, d, f) packed; weights and experts (t, k).
void experts(const bf16* x, const bf16* gate_up, const bf16* down, const float* weights,
             const int32_t* chosen, bf16* out, int64_t t, int64_t k, int64_t count, int64_t d,
             int64_t f, int threads) {
    Shape up_shape{2 * f, d}, down_shape{d, f};
    Routed routed = sort_by_expert(weights, chosen, t, k, count);
    const std::vector<Block>& blocks = routed.blocks;
    int64_t wide = up_shape.pairs() * 2, narrow = down_shape.pairs() * 2, rows = t * k;
    int64_t up_panels = ceil_div(f, PANEL), down_panels = down_shape.panels();
    std::vector<Group> groups = group_by_expert(blocks, wide);
    int64_t many = groups.size();
    bf16* scratch = new bf16[rows * (wide + narrow + d)];
    bf16 *gathered = scratch, *hidden = gathered + rows * wide, *y = hidden + rows * narrow;
#pragma omp parallel num_threads(useful(threads, rows * d * f * 3))
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < (int64_t)blocks.size(); ++b)
            gather(x, d, blocks[b], [&](int64_t row) { return routed.order[row] / k; },
                   gathered + blocks[b].begin * wide);
#pragma omp for schedule(dynamic, 2)
        for (int64_t i = 0; i < many * up_panels; ++i)
            for (int64_t b = groups[i / up_panels].first; b < groups[i / up_panels].last; ++b)
                gate_up_panel(blocks[b], gathered + blocks[b].begin * wide,
                              gate_up + blocks[b].expert * up_shape.size(), up_shape,
                              i % up_panels, hidden + blocks[b].begin * narrow);
#pragma omp for schedule(dynamic, 2)
        for (int64_t i = 0; i < many * down_panels; ++i)
            for (int64_t b = groups[i / down_panels].first; b < groups[i / down_panels].last; ++b) {
                float sums[MAX_ROWS][PANEL];
                int64_t panel = i % down_panels;
                multiply_block(
                    blocks[b].rows, hidden + blocks[b].begin * narrow,
                    down + blocks[b].expert * down_shape.size() + panel * down_shape.panel_size(),
                    down_shape.pairs(), sums);
                store_rows(blocks[b], sums, nullptr, d, panel, y);
            }
#pragma omp for schedule(static)
        for (int64_t token = 0; token < t; ++token) combine(routed, token, y, d, out);
    }
    delete[] scratch;
}

}  // extern "C"
