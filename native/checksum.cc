// CRC32C and the 64-bit hash of the journal's chain.
//
// Must give the same values as src/base/crc32c.ts and src/base/hash64.ts, the
// references. Must not know: what is summed, and what the sums guard.
#include <cstring>

#include "context.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace lockstep {
namespace {

uint64_t load64(const uint8_t* at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

// One lane of the interleaved loop: 3 lanes of 1360 bytes and 16 bytes of rest make 4 KiB.
constexpr size_t LANE_BYTES = 1360;
constexpr size_t LANES_BYTES = 3 * LANE_BYTES;

struct Tables {
  // slices[k][b]: register after byte b and k zero bytes, for the road without the instruction.
  uint32_t slices[8][256];
  // shift[k][b]: what byte k of the register, being b, becomes after LANE_BYTES zero bytes. The
  // register's evolution over zeros is linear, so four look-ups shift any register by a lane.
  uint32_t shift[4][256];
  bool hardware;

  Tables() {
    for (uint32_t b = 0; b < 256; b++) {
      uint32_t c = b;
      for (int k = 0; k < 8; k++) c = (c & 1) != 0 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
      slices[0][b] = c;
    }
    for (int k = 1; k < 8; k++) {
      for (uint32_t b = 0; b < 256; b++) slices[k][b] = slices[0][slices[k - 1][b] & 0xff] ^ (slices[k - 1][b] >> 8);
    }
    uint32_t bits[32];
    for (int bit = 0; bit < 32; bit++) {
      uint32_t c = 1u << bit;
      for (size_t i = 0; i < LANE_BYTES; i++) c = slices[0][c & 0xff] ^ (c >> 8);
      bits[bit] = c;
    }
    for (int k = 0; k < 4; k++) {
      for (uint32_t b = 0; b < 256; b++) {
        uint32_t sum = 0;
        for (int bit = 0; bit < 8; bit++) {
          if ((b >> bit & 1) != 0) sum ^= bits[8 * k + bit];
        }
        shift[k][b] = sum;
      }
    }
#if defined(__x86_64__)
    hardware = __builtin_cpu_supports("sse4.2");
#else
    hardware = false;
#endif
  }

  uint32_t shifted(uint32_t c) const {
    return shift[0][c & 0xff] ^ shift[1][c >> 8 & 0xff] ^ shift[2][c >> 16 & 0xff] ^ shift[3][c >> 24];
  }
};

const Tables TABLES;

uint32_t crcByTable(const uint8_t* at, size_t length, uint32_t c) {
  const auto& s = TABLES.slices;
  for (; length >= 8; at += 8, length -= 8) {
    const uint64_t w = load64(at) ^ c;
    c = s[7][w & 0xff] ^ s[6][w >> 8 & 0xff] ^ s[5][w >> 16 & 0xff] ^ s[4][w >> 24 & 0xff] ^ s[3][w >> 32 & 0xff] ^
        s[2][w >> 40 & 0xff] ^ s[1][w >> 48 & 0xff] ^ s[0][w >> 56];
  }
  for (; length > 0; at++, length--) c = s[0][(c ^ *at) & 0xff] ^ (c >> 8);
  return c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crcByInstruction(const uint8_t* at, size_t length, uint32_t c) {
  // The instruction takes three cycles but can start in every one: three independent sums keep it busy.
  for (; length >= LANES_BYTES; at += LANES_BYTES, length -= LANES_BYTES) {
    uint64_t first = c, second = 0, third = 0;
    for (size_t i = 0; i < LANE_BYTES; i += 8) {
      first = _mm_crc32_u64(first, load64(at + i));
      second = _mm_crc32_u64(second, load64(at + LANE_BYTES + i));
      third = _mm_crc32_u64(third, load64(at + 2 * LANE_BYTES + i));
    }
    c = TABLES.shifted(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    c = TABLES.shifted(c) ^ static_cast<uint32_t>(third);
  }
  uint64_t wide = c;
  for (; length >= 8; at += 8, length -= 8) wide = _mm_crc32_u64(wide, load64(at));
  c = static_cast<uint32_t>(wide);
  for (; length > 0; at++, length--) c = _mm_crc32_u8(c, *at);
  return c;
}
#endif

uint32_t crc32c(const uint8_t* at, size_t length, uint32_t seed, bool hardware) {
#if defined(__x86_64__)
  if (hardware) return ~crcByInstruction(at, length, ~seed);
#else
  (void)hardware;
#endif
  return ~crcByTable(at, length, ~seed);
}

constexpr uint64_t P1 = 0x9e3779b185ebca87u;
constexpr uint64_t P2 = 0xc2b2ae3d27d4eb4fu;
constexpr uint64_t P3 = 0x165667b19e3779f9u;

inline uint64_t mix(uint64_t h, uint64_t word) {
  const uint64_t mixed = h ^ (word * P2);
  return (mixed << 27 | mixed >> 37) * P1 + P3;
}

uint64_t hash64(const uint8_t* at, size_t length, uint64_t seed) {
  uint64_t h = seed ^ (static_cast<uint64_t>(length) * P1);
  for (; length >= 8; at += 8, length -= 8) h = mix(h, load64(at));
  if (length > 0) {
    uint8_t last[8] = {};
    memcpy(last, at, length);
    h = mix(h, load64(last));
  }
  h ^= h >> 33;
  h *= P2;
  h ^= h >> 29;
  h *= P3;
  h ^= h >> 32;
  return h;
}

// ---- calls ----------------------------------------------------------------------------------

napi_value crc(napi_env env, napi_callback_info info, bool hardware) {  // buffer, length, seed
  Call<3> call(env, info);
  size_t length = 0;
  const uint8_t* at = call.range(0, &length);
  const double seed = call.whole(2, UINT32_MAX);
  if (call.failed()) return nullptr;
  return give(env, crc32c(at, length, static_cast<uint32_t>(seed), hardware));
}

napi_value crc32cCall(napi_env env, napi_callback_info info) { return crc(env, info, TABLES.hardware); }

// The road that other processors take, so that tests can walk it on this one.
napi_value crc32cByTableCall(napi_env env, napi_callback_info info) { return crc(env, info, false); }

// results: high and low half of the hash.
napi_value hash64Call(napi_env env, napi_callback_info info) {  // buffer, length, seedHi, seedLo
  Call<4> call(env, info);
  size_t length = 0;
  const uint8_t* at = call.range(0, &length);
  const uint64_t high = static_cast<uint64_t>(call.whole(2, UINT32_MAX));
  const uint64_t low = static_cast<uint64_t>(call.whole(3, UINT32_MAX));
  if (call.failed()) return nullptr;
  const uint64_t h = hash64(at, length, high << 32 | low);
  call.context().results[0] = static_cast<double>(h >> 32);
  call.context().results[1] = static_cast<double>(h & UINT32_MAX);
  return give(env, 0);
}

const Method METHODS[] = {{"crc32c", crc32cCall}, {"crc32cByTable", crc32cByTableCall}, {"hash64", hash64Call}};

}  // namespace

Methods checksumMethods() { return {METHODS, sizeof METHODS / sizeof METHODS[0]}; }

}  // namespace lockstep
