// What takes long in reading offline wandb files: checksums, the items of history records, and
// numbers from text. Built and called by wandb_native.py; wandb_blocks.py and wandb_rows.py do the
// same in numpy, and tests hold the two together.
//
// No read leaves the bytes given, plus the spare ones behind them that the caller has zeroed.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned __int128 Wide;

enum { ABI = 1 };
enum { BLOCK = 32768, HEADER = 7, FULL = 1, LAST = 4 };
enum { NOT_THERE, NUMBER, ASK };  // what a cell of a column holds
enum { LONGEST_VARINT = 5, LONG = 0x80 };

// What the caller makes once, with integers of any size.
typedef struct {
  const uint32_t *crc;       // [16][256]: CRC-32 of a byte followed by 0 .. 15 zero bytes
  const uint64_t *mantissa;  // 10^q is in [m, m + 1) 2^exponent, m with its first bit set
  const int32_t *exponent;
  int32_t first_power, last_power;  // the q of the tables' ends
} Tables;

int32_t zw_abi(void) { return ABI; }

static uint32_t load32(const uint8_t *at) {
  return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t load64(const uint8_t *at) { return load32(at) | (uint64_t)load32(at + 4) << 32; }

// CRC-32 as zlib has it, sixteen bytes at a time: the CRC is linear, so each byte's part is looked
// up for the number of bytes that follow it.
uint32_t zw_crc(const Tables *tables, uint32_t crc, const uint8_t *at, int64_t size) {
  const uint32_t(*t)[256] = (const uint32_t(*)[256])tables->crc;
  crc = ~crc;
  for (; size >= 16; at += 16, size -= 16) {
    uint32_t a = load32(at) ^ crc, b = load32(at + 4), c = load32(at + 8), d = load32(at + 12);
    crc = t[15][a & 255] ^ t[14][a >> 8 & 255] ^ t[13][a >> 16 & 255] ^ t[12][a >> 24] ^
          t[11][b & 255] ^ t[10][b >> 8 & 255] ^ t[9][b >> 16 & 255] ^ t[8][b >> 24] ^
          t[7][c & 255] ^ t[6][c >> 8 & 255] ^ t[5][c >> 16 & 255] ^ t[4][c >> 24] ^
          t[3][d & 255] ^ t[2][d >> 8 & 255] ^ t[1][d >> 16 & 255] ^ t[0][d >> 24];
  }
  for (; size > 0; at++, size--) crc = crc >> 8 ^ t[0][(crc ^ *at) & 255];
  return ~crc;
}

// Fragments of a lot of blocks, the first `skip` bytes in; each block up to its first damage.
// Arrays have room for size / HEADER fragments, `damage` for every block (-1: none). Returns the
// number of fragments; `rest`: first byte that belongs to no fragment, damaged block or padding.
int64_t zw_fragments(const Tables *tables, const uint8_t *view, int64_t size, int64_t skip,
                     int64_t *starts, int64_t *ends, int64_t *kinds, int64_t *blocks,
                     int64_t *damage, int64_t *rest) {
  int64_t count = 0, at = 0;
  const int64_t num_blocks = (size + BLOCK - 1) / BLOCK;
  for (int64_t block = 0; block < num_blocks; block++) {
    const int64_t block_end = (block + 1) * BLOCK;
    const int64_t last = (block_end < size ? block_end : size) - HEADER;
    damage[block] = -1;
    for (at = block ? block * BLOCK : skip; at <= last;) {
      const uint8_t *header = view + at, kind = header[6];
      const int64_t start = at + HEADER, end = start + header[4] + 256 * header[5];
      const int sound = kind >= FULL && kind <= LAST && end <= block_end;
      if (sound && end > size) break;  // cut inside: no damage, only an end
      const uint32_t crc = sound ? zw_crc(tables, 0, &kind, 1) : 0;
      if (!sound || zw_crc(tables, crc, view + start, end - start) != load32(header)) {
        damage[block] = at;
        break;
      }
      starts[count] = start, ends[count] = end, kinds[count] = kind, blocks[count] = block;
      count++;
      at = end;
    }
  }
  const int padding = num_blocks * BLOCK == size && size < at + HEADER;
  *rest = damage[num_blocks - 1] < 0 && !padding ? at : size;
  return count;
}

// A protobuf variable-length integer; NULL if it is longer than LONGEST_VARINT.
static const uint8_t *varint(const uint8_t *at, int64_t *value) {
  *value = 0;
  for (int i = 0; i < LONGEST_VARINT; i++) {
    *value |= (int64_t)(at[i] & 0x7F) << (7 * i);
    if (at[i] < 0x80) return at + i + 1;
  }
  return NULL;
}

static double of_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// w 10^q correctly rounded, or 0 if that would take more than 64 bits of 10^q, or a subnormal.
//
// With m <= 10^q 2^-e < m + 1 the product lies between w m and w m + w. Where both ends round to
// the same 53 bits, and neither is half way between two numbers, so does what lies between.
static int scaled(const Tables *tables, uint64_t w, int64_t q, double *value) {
  if (q < tables->first_power || q > tables->last_power) return 0;
  const int shift = __builtin_clzll(w);
  w <<= shift;
  const Wide low = (Wide)w * tables->mantissa[q - tables->first_power];
  const int drop = (low >> 127 ? 128 : 127) - 53;
  const Wide half = (Wide)1 << (drop - 1), high = low + w + half;
  if (high < half) return 0;  // ran over
  const uint64_t rounded = (uint64_t)((low + half) >> drop);
  if (rounded != (uint64_t)(high >> drop) || (low & (2 * half - 1)) == half) return 0;
  const int64_t exponent = drop + tables->exponent[q - tables->first_power] - shift;
  if (exponent < -1070 || exponent > 970) return 0;
  // The first of the 53 bits is added to the exponent, and so is the carry out of them all.
  *value = of_bits(((uint64_t)(exponent + 52 + 1022) << 52) + rounded);
  return 1;
}

static int is_digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }

// The double nearest to a JSON number, as Python reads it. 0: ask Python; either it is no number,
// or one of the few that need more digits than are looked at here.
int32_t zw_number(const Tables *tables, const uint8_t *at, int64_t size, double *value) {
  static const double exact[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                 1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  const uint8_t *end = at + size;
  const int negative = size > 0 && *at == '-';
  at += negative;
  if (end - at == 8 && !memcmp(at, "Infinity", 8)) {
    *value = of_bits((uint64_t)(negative ? 0xFFF : 0x7FF) << 52);
    return 1;
  }
  if (size == 3 && !memcmp(at, "NaN", 3)) {
    *value = of_bits((uint64_t)0x7FF8 << 48);
    return 1;
  }
  if (at == end || !is_digit(*at)) return 0;
  const uint8_t *first = at;
  uint64_t w = 0;
  int64_t q = 0;
  for (; at < end && is_digit(*at); at++) w = 10 * w + (*at - '0');
  int64_t digits = at - first;
  if (*first == '0' && digits > 1) return 0;
  int integer = 1;
  if (at < end && *at == '.') {
    const uint8_t *point = at++;
    for (; at < end && is_digit(*at); at++) w = 10 * w + (*at - '0');
    q = point + 1 - at;
    if (!q) return 0;
    digits -= q;
    integer = 0;
  }
  if (digits > 19) {  // leading zeros do not count; any other would not fit into w
    for (const uint8_t *zero = first; digits > 19 && (*zero == '0' || *zero == '.'); zero++)
      digits -= *zero == '0';
    if (digits > 19) return 0;
  }
  if (at < end && (*at == 'e' || *at == 'E')) {
    at++;
    const int down = at < end && *at == '-';
    if (at < end && (*at == '-' || *at == '+')) at++;
    int64_t power = 0;
    const uint8_t *begin = at;
    for (; at < end && is_digit(*at) && at - begin < 6; at++) power = 10 * power + (*at - '0');
    if (at == begin) return 0;
    q += down ? -power : power;
    integer = 0;
  }
  if (at != end) return 0;
  double found;
  if (!w) {
    if (negative && integer) return 0;  // an integer has no negative zero
    found = 0.0;
  } else if (w <= (uint64_t)1 << 53 && q >= -22 && q <= 22) {
    // Both exact, so the one operation rounds correctly.
    found = q < 0 ? (double)w / exact[-q] : (double)w * exact[q];
  } else if (!scaled(tables, w, q, &found)) {
    return 0;
  }
  *value = negative ? -found : found;
  return 1;
}

// The keys met so far, found by a hash of their length and their first and last bytes.
typedef struct {
  const uint8_t *view;
  int64_t *starts, *ends;
  int64_t count, room;
  uint64_t mask;
  int32_t *slots;  // number of the key + 1; 0: free
} Keys;

// Number of the key, a new one if need be; -1 if there is no room for it.
static int64_t key_number(Keys *keys, int64_t start, int64_t size) {
  const uint8_t *at = keys->view + start;
  uint64_t head = load64(at);
  if (size < 8) head &= ((uint64_t)1 << 8 * size) - 1;
  const uint64_t tail = size < 8 ? 0 : load64(at + size - 8);
  uint64_t hash = (head ^ (uint64_t)size) * 0x9E3779B97F4A7C15u;
  hash = (hash ^ hash >> 32 ^ tail) * 0xD1B54A32D192ED03u;
  for (uint64_t slot = hash >> 32 & keys->mask;; slot = (slot + 1) & keys->mask) {
    const int64_t found = keys->slots[slot] - 1;
    if (found < 0) {
      if (keys->count == keys->room) return -1;
      keys->slots[slot] = (int32_t)keys->count + 1;
      keys->starts[keys->count] = start, keys->ends[keys->count] = start + size;
      return keys->count++;
    }
    if (keys->ends[found] - keys->starts[found] == size &&
        !memcmp(keys->view + keys->starts[found], at, (size_t)size))
      return found;
  }
}

typedef struct {
  double *numbers;
  uint8_t *there;
  int64_t num_rows;
} Columns;

// One history record as it nearly always is (see wandb_rows.py): 1 with its step and its items in
// their columns, 0 if it has another shape, -1 if there are too many keys.
static int32_t one_row(const Tables *tables, Keys *keys, int64_t start, int64_t stop, int64_t row,
                       const Columns *columns, int64_t *step) {
  const uint8_t *view = keys->view, *at = view + start, *end = view + stop;
  int64_t size;
  if (at < end && *at == 0x08 && !(at = varint(at + 1, &size))) return 0;
  if (at >= end || *at != 0x12 || !(at = varint(at + 1, &size)) || size != end - at) return 0;
  while (end - at >= 7 && *at == 0x0A) {  // an item: 0a SIZE, 0a|12 SIZE KEY, 82 01 SIZE VALUE
    if (at[1] >= LONG || at[1] > end - at - 2) return 0;
    const uint8_t *item_end = at + 2 + at[1], *key = at + 4;
    if ((at[2] != 0x0A && at[2] != 0x12) || at[3] >= LONG) return 0;
    const uint8_t *value = key + at[3] + 3;
    if (value > item_end || value[-3] != 0x82 || value[-2] != 0x01) return 0;
    if (value[-1] >= LONG || value + value[-1] != item_end) return 0;
    const int64_t number = key_number(keys, key - view, at[3]);
    if (number < 0) return -1;
    const int64_t cell = number * columns->num_rows + row;
    if (columns->there[cell]) return 0;  // the same key twice
    columns->there[cell] = NUMBER;
    if (!zw_number(tables, value, item_end - value, columns->numbers + cell)) {
      columns->there[cell] = ASK;
      columns->numbers[cell] = (double)(value - view);
    }
    at = item_end;
  }
  // Behind the last the step, of which 0 is not written.
  if (end - at < 2 || *at != 0x12 || at[1] != end - at - 2) return 0;
  return at[1] == 0 || (at[2] == 0x08 && varint(at + 3, step) == end);
}

// History records as columns.
//
// starts, ends (num_rows): where the records lie in `view`. Out: steps and fits (num_rows);
// numbers and there (room, num_rows), both zeroed before, column by column; key_starts, key_ends
// (room). A cell to ASK about holds where its text begins, one byte behind the text's length.
// Returns the number of keys; -1 if there are more than `room`, -2 if there is no memory.
int64_t zw_rows(const Tables *tables, const uint8_t *view, const int64_t *starts,
                const int64_t *ends, int64_t num_rows, int64_t *steps, uint8_t *fits,
                double *numbers, uint8_t *there, int64_t *key_starts, int64_t *key_ends,
                int64_t room) {
  uint64_t num_slots = 64;
  while (num_slots < 4 * (uint64_t)room) num_slots *= 2;
  Keys keys = {view, key_starts, key_ends, 0, room, num_slots - 1, NULL};
  if (!(keys.slots = calloc(num_slots, sizeof *keys.slots))) return -2;
  const Columns columns = {numbers, there, num_rows};
  int32_t fit = 1;
  for (int64_t row = 0; row < num_rows && fit >= 0; row++) {
    steps[row] = 0;
    fit = one_row(tables, &keys, starts[row], ends[row], row, &columns, steps + row);
    fits[row] = fit > 0;
  }
  free(keys.slots);
  return fit < 0 ? -1 : keys.count;
}
