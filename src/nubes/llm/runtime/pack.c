/* Weights into panels: from floats, or from GGUF's blocks of 32. */
#include "runtime.h"

enum { FROM_F32, FROM_Q4_1, FROM_Q8_0 };
enum { RUN = PANEL / 2, MOST = 96 /* inputs of a group */ };
enum { Q4_1_BYTES = 20, Q8_0_BYTES = 34 };

INLINE float half_at(const uint8_t *p) {
    half h;
    memcpy(&h, p, 2);
    return (float)h;
}

/* The g-th 32 weights of row `row`. */
INLINE void read_part(int from, const void *source, long row, int inputs, int g, float *to) {
    const long at = row * (inputs / PART) + g;
    if (from == FROM_F32) {
        memcpy(to, (const float *)source + at * PART, 4 * PART);
    } else if (from == FROM_Q4_1) {
        const uint8_t *p = (const uint8_t *)source + at * Q4_1_BYTES;
        const float d = half_at(p), m = half_at(p + 2);
        for (int i = 0; i < 16; i++) {
            to[i] = d * (float)(p[4 + i] & 15) + m;
            to[i + 16] = d * (float)(p[4 + i] >> 4) + m;
        }
    } else {
        const uint8_t *p = (const uint8_t *)source + at * Q8_0_BYTES;
        const float d = half_at(p);
        for (int i = 0; i < PART; i++) to[i] = d * (float)((const int8_t *)p)[2 + i];
    }
}

INLINE void pack_int8(int from, const void *source, long row, int inputs, int g, uint8_t *group, int lane, int size) {
    uint8_t bytes[MOST];
    half scale;
    if (from == FROM_Q8_0 && size == PART) { /* the same thing already */
        const uint8_t *p = (const uint8_t *)source + (row * (inputs / PART) + g) * Q8_0_BYTES;
        memcpy(&scale, p, 2);
        for (int i = 0; i < PART; i++) bytes[i] = p[2 + i] ^ 128;
    } else {
        float w[MOST];
        for (int i = 0; i < size; i += PART) read_part(from, source, row, inputs, (g * size + i) / PART, w + i);
        vf most = splat(0);
        for (int i = 0; i < size; i += LANES) most = max_(most, abs_(load(w + i)));
        scale = (half)(top_(most) / 127.0f);
        const vf inverse = splat((float)scale > 0 ? 1.0f / (float)scale : 0);
        for (int i = 0; i < size; i += LANES) store_s8((int8_t *)bytes + i, round_(load(w + i) * inverse));
        for (int i = 0; i < size; i++) bytes[i] ^= 128;
    }
    ((half *)group)[lane] = scale;
    for (int i = 0; i < size / 4; i++) memcpy(group + 64 + i * 128 + lane * 4, bytes + i * 4, 4);
}

INLINE void pack_int4(int from, const void *source, long row, int inputs, int g, uint8_t *group, int lane) {
    uint8_t nibbles[PART];
    half scale, offset;
    if (from == FROM_Q4_1) { /* the same thing already */
        const uint8_t *p = (const uint8_t *)source + (row * (inputs / PART) + g) * Q4_1_BYTES;
        memcpy(&scale, p, 2);
        memcpy(&offset, p + 2, 2);
        for (int i = 0; i < 16; i++) {
            nibbles[i] = p[4 + i] & 15;
            nibbles[i + 16] = p[4 + i] >> 4;
        }
    } else {
        float w[PART], least, most;
        read_part(from, source, row, inputs, g, w);
        least = most = w[0];
        for (int i = 1; i < PART; i++) {
            least = w[i] < least ? w[i] : least;
            most = w[i] > most ? w[i] : most;
        }
        scale = (half)((most - least) / 15.0f);
        offset = (half)least;
        const float inverse = (float)scale > 0 ? 1.0f / (float)scale : 0;
        for (int i = 0; i < PART; i++) {
            const float x = (w[i] - (float)offset) * inverse + 0.5f;
            nibbles[i] = x >= 15 ? 15 : x >= 0 ? (uint8_t)x : 0;
        }
    }
    ((half *)group)[lane] = scale;
    ((half *)group)[32 + lane] = offset;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            group[128 + i * 128 + lane * 4 + j] = (uint8_t)(nibbles[i * 8 + j] | nibbles[i * 8 + 4 + j] << 4);
}

/* Rows of `source` become columns of `packed`: sixteen from `column` on, the next sixteen `step` further, and so on.
   What is packed must be zero before. Returns -1 for a kind or a group that is not known. */
int nubes_pack(int kind, uint8_t *packed, int inputs, int size, int column, int step, int source_kind,
               const void *source, int rows) {
    const matrix m = {kind, 0, inputs, size, packed};
    if (kind < FP32 || kind > INT4 || source_kind < FROM_F32 || source_kind > FROM_Q8_0) return -1;
    if (size % PART || inputs % size || size > (kind == INT8 ? MOST : PART)) return -1;
    for (int row = 0; row < rows; row++) {
        const int at = column + row / RUN * step + row % RUN, lane = at % PANEL;
        uint8_t *group = packed + at / PANEL * panel_bytes(&m);
        for (int g = 0; g < inputs / size; g++, group += group_bytes(kind, size)) {
            if (kind == INT8) {
                if (source_kind == FROM_Q4_1) pack_int8(FROM_Q4_1, source, row, inputs, g, group, lane, size);
                else pack_int8(source_kind, source, row, inputs, g, group, lane, size);
            } else if (kind == INT4) {
                pack_int4(source_kind, source, row, inputs, g, group, lane);
            } else {
                float w[PART];
                read_part(source_kind, source, row, inputs, g, w);
                for (int i = 0; i < PART; i++) ((float *)group)[i * PANEL + lane] = w[i];
            }
        }
    }
    return 0;
}
