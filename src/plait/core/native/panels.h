/* Codes times many rows of x, where a vector holds 64 bytes: 32 rows of W are laid out once as the instruction wants them and stay in
   the cache while all of x goes by. Each number is the sum that `tile` takes, in the same order, so its bits are the same too. */
#ifndef PANELS_H
#define PANELS_H
#include "matrix.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define PLAIT_PANELS
enum { PANEL = 32, DEEP = 6, FULL = 24 }; /* rows of W; rows of x whose sums stay in registers; rows of x from which on this pays */
typedef float v16f __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));

enum { SECOND = 400000 }; /* bytes of x that stay in the second cache while all of W goes by */

typedef struct {
  uint8_t *codes; /* [groups, 8, 32, 4], unsigned */
  float *scale;   /* [groups, 32] */
  float *least;   /* the same, or NULL */
} Panel;

/* How many rows of x. */
static int64_t chunk_rows(int64_t groups) {
  int64_t tiles = SECOND / (groups * (GROUP + 3 * (int64_t)sizeof(float)) * DEEP);
  return (tiles < 8 ? 8 : tiles) * DEEP;
}

static int64_t panel_bytes(int64_t groups) { return groups * PANEL * (GROUP + 2 * sizeof(float)); }

/* Eight by eight rows of W from block `first` on; behind the last block there are zeros. */
static void fill(Panel *p, const Matrix *w, int64_t groups, int64_t first, int64_t blocks) {
  const v8i up = w->bits == 8 ? all8i(0x80808080) : all8i(0), low = all8i(0x0f0f0f0f);
  for (int b = 0; b < PANEL / LANES; b++)
    for (int64_t g = 0; g < groups; g++) {
      uint8_t *to = p->codes + g * GROUP * PANEL + b * GROUP;
      int64_t at = (first + b) * groups + g, there = first + b < blocks;
      const uint8_t *from = (const uint8_t *)w->weight + at * w->bits * GROUP;
      v8f scale = there ? halves(w->scales + at * LANES) : all8(0);
      store8(p->scale + g * PANEL + b * LANES, scale);
      if (p->least) store8(p->least + g * PANEL + b * LANES, there && w->least ? halves(w->least + at * LANES) : scale * -8.0f);
      for (int v = 0; v < GROUP / 4; v++, to += 4 * PANEL) {
        v8i q = all8i(0);
        if (there && w->bits == 8) q = load(from + v * 32) ^ up;
        if (there && w->bits == 4) q = v < 4 ? load(from + v * 32) & low : (v8i)((v8u)load(from + (v - 4) * 32) >> 4) & low;
        memcpy(to, &q, 32);
      }
    }
}

/* m rows of x from `at` on times the 32 rows of a panel; `m` and `bits` are constants where this is called. */
INLINE void panel_tile(const int m, const int bits, const Panel *p, const Rows *x, int64_t at, v16f (*out)[2]) {
  v16f acc[DEEP][2];
  for (int i = 0; i < m; i++)
    for (int h = 0; h < 2; h++) acc[i][h] = (v16f){0};
  for (int64_t g = 0; g < x->groups; g++) {
    v16i dot[DEEP][2];
    for (int i = 0; i < m; i++) {
      int32_t from = bits == 8 ? -ABOVE * x->total[(at + i) * x->groups + g] : 0;
      dot[i][0] = dot[i][1] = (v16i)_mm512_set1_epi32(from);
    }
    const uint8_t *w = p->codes + g * GROUP * PANEL;
    for (int v = 0; v < GROUP / 4; v++, w += 4 * PANEL) {
      __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(w + 64);
      for (int i = 0; i < m; i++) {
        int32_t bytes;
        memcpy(&bytes, x->rounded + ((at + i) * x->groups + g) * GROUP + 4 * v, 4);
        __m512i four = _mm512_set1_epi32(bytes);
        dot[i][0] = (v16i)_mm512_dpbusd_epi32((__m512i)dot[i][0], low, four);
        dot[i][1] = (v16i)_mm512_dpbusd_epi32((__m512i)dot[i][1], high, four);
      }
    }
    for (int h = 0; h < 2; h++) {
      v16f d, from;
      memcpy(&d, p->scale + g * PANEL + 16 * h, sizeof d);
      if (bits == 4) memcpy(&from, p->least + g * PANEL + 16 * h, sizeof from);
      for (int i = 0; i < m; i++) {
        int64_t j = (at + i) * x->groups + g;
        v16f part = __builtin_convertvector(dot[i][h], v16f) * x->scale[j];
        acc[i][h] += part * d;
        if (bits == 4) acc[i][h] += from * x->sum[j];
      }
    }
  }
  for (int i = 0; i < m; i++)
    for (int h = 0; h < 2; h++) out[i][h] = acc[i][h];
}

#define PANEL_TILES(NAME, BITS)                                                                                                       \
  static void NAME(int m, const Panel *p, const Rows *x, int64_t at, v16f (*out)[2]) {                                                \
    switch (m) {                                                                                                                      \
      case 6: panel_tile(6, BITS, p, x, at, out); break;                                                                              \
      case 5: panel_tile(5, BITS, p, x, at, out); break;                                                                              \
      case 4: panel_tile(4, BITS, p, x, at, out); break;                                                                              \
      case 3: panel_tile(3, BITS, p, x, at, out); break;                                                                              \
      case 2: panel_tile(2, BITS, p, x, at, out); break;                                                                              \
      default: panel_tile(1, BITS, p, x, at, out);                                                                                    \
    }                                                                                                                                 \
  }
PANEL_TILES(panel_tiles8, 8)
PANEL_TILES(panel_tiles4, 4)

/* Rows of W from 32 * `panel` on, times the rows of x from `begin` to `end`, into y [rows, d_out]. */
static void panel_product(Panel *p, const Matrix *w, const Rows *x, int64_t panel, int64_t begin, int64_t end, float *y) {
  int64_t first = panel * PANEL, many = w->d_out - first < PANEL ? w->d_out - first : PANEL;
  float add[PANEL] = {0};
  fill(p, w, x->groups, first / LANES, (w->d_out + LANES - 1) / LANES);
  if (w->bias) memcpy(add, w->bias + first, many * sizeof(float));
  for (int64_t at = begin; at < end; at += DEEP) {
    int m = end - at < DEEP ? (int)(end - at) : DEEP;
    v16f out[DEEP][2];
    (w->bits == 8 ? panel_tiles8 : panel_tiles4)(m, p, x, at, out);
    for (int i = 0; i < m; i++) {
      if (w->bias)
        for (int h = 0; h < 2; h++) {
          v16f b;
          memcpy(&b, add + 16 * h, sizeof b);
          out[i][h] += b;
        }
      memcpy(y + (at + i) * w->d_out + first, out[i], many * sizeof(float));
    }
  }
}
#endif
#endif
