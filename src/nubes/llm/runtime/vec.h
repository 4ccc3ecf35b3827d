/* Sixteen lanes at a time: the few operations that all kernels are written in.

   With AVX-512 they are intrinsics; elsewhere (or with -DNUBES_PLAIN) they are vector extensions and loops, which gcc
   and clang turn into what the machine has. */
#ifndef NUBES_VEC_H
#define NUBES_VEC_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))
#define LANES 16

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef _Float16 half;

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, 64);
    return v;
}
INLINE void store(float *p, vf v) { memcpy(p, &v, 64); }
INLINE vi load_i(const void *p) {
    vi v;
    memcpy(&v, p, 64);
    return v;
}
INLINE void store_i(void *p, vi v) { memcpy(p, &v, 64); }
INLINE vf splat(float x) { return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE vi splat_i(int32_t x) { return (vi){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

/* Sixteen dwords of two nibbles a byte: the lower ones, and the upper ones. */
INLINE vi lower(vi v) { return v & splat_i(0x0f0f0f0f); }
INLINE vi upper(vi v) { return (v >> 4) & splat_i(0x0f0f0f0f); }

#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(NUBES_PLAIN)
#include <immintrin.h>
#define NUBES_VECTORS "avx512"
#define ROWS 6 /* of a tile of 32 columns: twelve accumulators hide the latency of one */

INLINE vf fma16(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf max16(vf a, vf b) { return _mm512_max_ps(a, b); } /* b if either is NaN */
INLINE vf abs16(vf a) { return _mm512_abs_ps(a); }
INLINE float sum16(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float top16(vf a) { return _mm512_reduce_max_ps(a); }
INLINE int32_t sum16_i(vi a) { return _mm512_reduce_add_epi32((__m512i)a); }
INLINE vf to_float(vi a) { return _mm512_cvtepi32_ps((__m512i)a); }
INLINE int nans(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
INLINE vf load_half(const half *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store_half(half *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf choose(uint16_t mask, vf yes, vf no) { return _mm512_mask_blend_ps(mask, no, yes); }
/* To the nearest of -127 ... 127; what NaN becomes is not told, but harmless. */
INLINE vi round16(vf v) { return (vi)_mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(-127)); }
INLINE void store_s8(int8_t *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8((__m512i)v)); }

/* acc + the dot product of four unsigned bytes in each lane of `w` with the four signed bytes of `a`. */
INLINE vi dot4(vi acc, vi w, int32_t a) {
#ifdef __AVX512VNNI__
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#else
    const __m512i v = _mm512_set1_epi32(a), u = (__m512i)w;
    const __m512i even =
        _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(v, 8));
    return acc + (vi)even + (vi)odd;
#endif
}

#else
#define NUBES_VECTORS "plain"
#define ROWS 2
#define EACH for (int i = 0; i < LANES; i++)

INLINE vf fma16(vf a, vf b, vf c) { return a * b + c; }
INLINE vf max16(vf a, vf b) {
    EACH a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
INLINE vf abs16(vf a) {
    EACH a[i] = __builtin_fabsf(a[i]);
    return a;
}
INLINE float sum16(vf a) {
    float s = 0;
    EACH s += a[i];
    return s;
}
INLINE float top16(vf a) {
    float m = a[0];
    EACH m = a[i] > m ? a[i] : m;
    return m;
}
INLINE int32_t sum16_i(vi a) {
    int32_t s = 0;
    EACH s += a[i];
    return s;
}
INLINE vf to_float(vi a) { return __builtin_convertvector(a, vf); }
INLINE int nans(vf a) {
    int any = 0;
    EACH any |= a[i] != a[i];
    return any;
}
INLINE vf load_half(const half *p) {
    vf v;
    EACH v[i] = (float)p[i];
    return v;
}
INLINE void store_half(half *p, vf v) { EACH p[i] = (half)v[i]; }
INLINE vf choose(uint16_t mask, vf yes, vf no) {
    EACH no[i] = mask >> i & 1 ? yes[i] : no[i];
    return no;
}
INLINE vi round16(vf v) {
    vi r;
    EACH {
        const float x = v[i] < 127.0f ? v[i] : 127.0f;
        r[i] = (int32_t)__builtin_rintf(x > -127.0f ? x : -127.0f);
    }
    return r;
}
INLINE void store_s8(int8_t *p, vi v) { EACH p[i] = (int8_t)v[i]; }
#if defined(__AVX2__) && !defined(NUBES_PLAIN)
#include <immintrin.h>
INLINE vi dot4(vi acc, vi w, int32_t a) {
    const __m256i v = _mm256_set1_epi32(a), mask = _mm256_set1_epi16(255);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), odd = _mm256_srai_epi16(v, 8);
    __m256i u[2], s[2];
    memcpy(u, &w, 64);
    memcpy(s, &acc, 64);
    for (int i = 0; i < 2; i++) {
        const __m256i low = _mm256_madd_epi16(_mm256_and_si256(u[i], mask), even);
        const __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(u[i], 8), odd);
        s[i] = _mm256_add_epi32(s[i], _mm256_add_epi32(low, high));
    }
    memcpy(&acc, s, 64);
    return acc;
}
#else
INLINE vi dot4(vi acc, vi w, int32_t a) {
    uint8_t u[64];
    int8_t s[4];
    memcpy(u, &w, 64);
    memcpy(s, &a, 4);
    EACH acc[i] += u[4 * i] * s[0] + u[4 * i + 1] * s[1] + u[4 * i + 2] * s[2] + u[4 * i + 3] * s[3];
    return acc;
}
#endif
#endif

/* e^x to about 2e-7 of its value for x in [-87, 88]; below that e^-87, and NaN for NaN. */
INLINE vf exp16(vf x) {
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits */
    x = max16(splat(-87.0f), x);
    const vf t = fma16(x, splat(1.44269504f), magic), n = t - magic;
    const vf r = fma16(n, splat(-1.42860682e-6f), fma16(n, splat(-0.693145752f), x));
    vf p = fma16(r, splat(1.3888889e-3f), splat(8.3333333e-3f));
    p = fma16(p, r, splat(4.1666667e-2f));
    p = fma16(p, r, splat(1.6666667e-1f));
    p = fma16(p, r, splat(0.5f));
    p = fma16(p, r, splat(1.0f));
    p = fma16(p, r, splat(1.0f));
    vi bits;
    memcpy(&bits, &t, 64);
    bits = (vi)(((vi)(bits << 23)) + splat_i(0x3f800000));
    vf scale;
    memcpy(&scale, &bits, 64);
    return p * scale;
}

#endif
