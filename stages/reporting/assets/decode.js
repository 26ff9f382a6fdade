// Takes the page's data apart: base64, zlib, a header in JSON, columns as typed arrays.
const TYPES = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, u4: Uint32Array,
                f2: Uint16Array, f4: Float32Array, f8: Float64Array };

async function unpack(text) {
  const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(plain).arrayBuffer();
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const columns = {};
  for (const [name, { type, offset, length }] of Object.entries(header.columns)) {
    const values = new TYPES[type](buffer, 4 + size + offset, length);
    columns[name] = type === "f2" ? halves(values) : values;
  }
  columns.entryOff = offsets(columns.entries);
  columns.headOff = offsets(columns.heads);
  return { meta: header.meta, columns };
}

// Where the values of each position start, from how many each has.
function offsets(counts) {
  const found = new Uint32Array(counts.length + 1);
  for (let at = 0; at < counts.length; at++) found[at + 1] = found[at] + counts[at];
  return found;
}

// IEEE 754 binary16, by a table of all of them.
let halfTable = null;
function halves(values) {
  if (!halfTable) {
    halfTable = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits & 0x8000 ? -1 : 1;
      const exponent = (bits >> 10) & 31;
      const fraction = (bits & 1023) / 1024;
      halfTable[bits] = exponent === 31 ? (fraction ? NaN : sign * Infinity)
        : exponent ? sign * 2 ** (exponent - 15) * (1 + fraction)
        : sign * 2 ** -14 * fraction;
    }
  }
  return Float32Array.from(values, (bits) => halfTable[bits]);
}
