/* Vectors are the compiler's own (GCC, Clang); intrinsics stand only where a dot product of bytes or a float16 needs them.

   A sum is taken in an order that depends on nothing but its length, so that a row's numbers never depend on the rows beside it. */
#ifndef VECTORS_H
#define VECTORS_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 8 };
typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint32_t v8u __attribute__((vector_size(32)));

#ifdef __AVX512F__
enum { WIDE = 16 };
typedef float wide __attribute__((vector_size(64)));
#else
enum { WIDE = 8 };
typedef v8f wide;
#endif

INLINE int64_t up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
INLINE v8f load8(const float *p) { v8f v; memcpy(&v, p, sizeof v); return v; }
INLINE void store8(float *p, v8f v) { memcpy(p, &v, sizeof v); }
INLINE wide load_wide(const float *p) { wide v; memcpy(&v, p, sizeof v); return v; }
INLINE v8f all8(float a) { return (v8f){a, a, a, a, a, a, a, a}; }
INLINE v8i all8i(uint32_t a) { int32_t b = (int32_t)a; return (v8i){b, b, b, b, b, b, b, b}; }
INLINE v8f either(v8i test, v8f yes, v8f no) { return (v8f)(((v8i)yes & test) | ((v8i)no & ~test)); }

INLINE float across(v8f v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

/* The sums of eight vectors, one a lane, each in the order of `across`. */
INLINE v8f across_each(const v8f *v) {
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (v8i){__VA_ARGS__})
#endif
  v8f halves[4], quarters[2]; /* lane i of the sum adds lanes i and i + 4 first, then (0 and 1), (2 and 3), then both */
  for (int i = 0; i < 4; i++) {
    v8f low = SHUFFLE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11), high = SHUFFLE(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    halves[i] = low + high; /* four of the first, four of the second */
  }
  for (int i = 0; i < 2; i++) {
    v8f even = SHUFFLE(halves[2 * i], halves[2 * i + 1], 0, 2, 4, 6, 8, 10, 12, 14);
    v8f odd = SHUFFLE(halves[2 * i], halves[2 * i + 1], 1, 3, 5, 7, 9, 11, 13, 15);
    quarters[i] = even + odd; /* two of each of four */
  }
  return SHUFFLE(quarters[0], quarters[1], 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE(quarters[0], quarters[1], 1, 3, 5, 7, 9, 11, 13, 15);
}

INLINE float across_wide(wide v) {
#ifdef __AVX512F__
  v8f half[2];
  memcpy(half, &v, sizeof v);
  return across(half[0] + half[1]);
#else
  return across(v);
#endif
}

/* e^x: 2^n e^r with |r| <= ln 2 / 2, r in two parts so that nothing is lost, e^r by its series up to r^7. Within 2 units in the last
   place; 0 below -87.3 (no denormals), infinite above 88.7, NaN for NaN. */
INLINE v8f exp8(v8f x) {
  v8i nan = x != x, low = x < all8(-87.33654f), high = x > all8(88.72283f);
  x = either(low | high | nan, all8(0), x);
  const float nearest = 12582912; /* 1.5 * 2^23: adding it rounds to a whole number */
  v8f n = x * 1.44269504f + nearest - nearest;
  v8f r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  v8f s = all8(1.0f / 5040);
  s = s * r + 1.0f / 720;
  s = s * r + 1.0f / 120;
  s = s * r + 1.0f / 24;
  s = s * r + 1.0f / 6;
  s = s * r + 0.5f;
  s = s * r * r + r + 1.0f;
  v8i half = __builtin_convertvector(n, v8i) >> 1, rest = __builtin_convertvector(n, v8i) - half; /* 2^128 is no float, 2^64 is */
  s = s * (v8f)((half + 127) << 23) * (v8f)((rest + 127) << 23);
  s = either(low, all8(0), s);
  s = either(high, all8(INFINITY), s);
  return either(nan, all8(NAN), s);
}

INLINE v8f sigmoid8(v8f x) { return 1.0f / (1.0f + exp8(-x)); }

/* Numbers as in core/program.py. */
enum { NO_ACTIVATION, RELU, RELU2, GELU, GELU_TANH, SILU, QUICK_GELU };

INLINE v8f activated(int kind, v8f x) {
  v8f cut = either((x > all8(0)) | (x != x), x, all8(0)); /* a NaN stays one */
  switch (kind) {
    case RELU: return cut;
    case RELU2: return cut * cut;
    case GELU:
      for (int r = 0; r < LANES; r++) x[r] *= 0.5f * (1.0f + erff(x[r] * 0.70710678f));
      return x;
    case GELU_TANH: return x * sigmoid8(1.59576912f * (x + 0.044715f * x * x * x)); /* (1 + tanh u) / 2 is the sigmoid of 2 u */
    case SILU: return x * sigmoid8(x);
    case QUICK_GELU: return x * sigmoid8(1.702f * x);
    default: return x;
  }
}
#endif
