/* A matrix W [d_out, d_in], float32 or codes, and the product of a few rows of x with eight of its rows. */
#ifndef MATRIX_H
#define MATRIX_H
#include "codes.h"
#include "floats.h"

typedef struct {
  const void *weight; /* float32 where bits is 32, else codes [d_out / 8, groups, bits, 8, 4] bytes */
  const uint16_t *scales, *least; /* [d_out / 8, groups, 8] float16; least: NULL where there is none */
  const float *bias; /* NULL where there is none */
  int64_t d_in, d_out, bits;
} Matrix;

/* x Wᵀ + b for m rows of x from `at` on and rows of W from `first` on. Codes take x as `prepare` left it, floats the rows `from`. */
INLINE void eight(const Matrix *w, const Rows *x, const float *from, int64_t stride, int64_t first, int64_t at, int m, v8f *out) {
  int many = w->d_out - first < LANES ? (int)(w->d_out - first) : LANES;
  float add[LANES] = {0};
  if (w->bits == 32)
    tiles_float(m, many, (const float *)w->weight + first * w->d_in, from + at * stride, stride, w->d_in, (float *)out);
  else {
    const uint16_t *least = w->least ? w->least + first * x->groups : NULL;
    const uint8_t *codes = (const uint8_t *)w->weight + first * x->groups * w->bits * 4;
    (w->bits == 8 ? tiles8 : tiles4)(m, codes, w->scales + first * x->groups, least, x, at, out);
  }
  if (w->bias) {
    memcpy(add, w->bias + first, many * sizeof(float));
    for (int i = 0; i < m; i++) out[i] += load8(add);
  }
}
#endif
