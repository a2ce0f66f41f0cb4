// The codec of AttachFrame (api/handrail/v1/sessions.proto), the one protobuf
// message that a browser speaks: one oneof, fields 1 to 10. Unknown fields are
// skipped, as protobuf demands.

const text = new TextEncoder();
const plain = new TextDecoder();

function varint(n) {
  const out = [];
  n = n >>> 0;
  while (n > 127) {
    out.push((n & 127) | 128);
    n >>>= 7;
  }
  out.push(n);
  return out;
}
const tag = (field, type) => varint((field << 3) | type);
function lengthy(field, bytes) {
  const head = [...tag(field, 2), ...varint(bytes.length)];
  const out = new Uint8Array(head.length + bytes.length);
  out.set(head);
  out.set(bytes, head.length);
  return out;
}

// encode makes the bytes of a frame that goes to the session.
export const encode = {
  input: (data) => lengthy(1, typeof data === "string" ? text.encode(data) : data),
  resize: (columns, rows) => lengthy(4, Uint8Array.from([...tag(1, 0), ...varint(columns), ...tag(2, 0), ...varint(rows)])),
  eof: () => Uint8Array.from([...tag(5, 0), 1]),
  signal: (name) => lengthy(6, text.encode(name)),
  acknowledged: (bytes) => Uint8Array.from([...tag(9, 0), ...varint(bytes)]),
};

// fields walks the fields of a message. Values are numbers or byte slices.
function* fields(bytes) {
  let at = 0;
  const next = () => {
    let low = 0, shift = 0;
    for (;;) {
      if (at >= bytes.length || shift > 63) throw new Error("a frame is cut short");
      const b = bytes[at++];
      if (shift < 32) low += (b & 127) * 2 ** shift; // beyond 32 bits only sign bits follow
      shift += 7;
      if (b < 128) return low;
    }
  };
  while (at < bytes.length) {
    const key = next();
    const field = key >>> 3, type = key & 7;
    if (type === 0) yield [field, next()];
    else if (type === 2) {
      const n = next();
      if (at + n > bytes.length) throw new Error("a frame is cut short");
      yield [field, bytes.subarray(at, at + n)];
      at += n;
    } else if (type === 1 || type === 5) {
      at += type === 1 ? 8 : 4;
      if (at > bytes.length) throw new Error("a frame is cut short");
    } else throw new Error("a frame has an unknown wire type");
  }
}

const words = { 10: "state", 11: "pausedWhy", 12: "endedWhy" };

// decode reads a frame that comes from the session: {kind, …}.
export function decode(bytes) {
  for (const [field, value] of fields(bytes)) {
    switch (field) {
      case 2: return { kind: "output", data: value };
      case 3: return { kind: "error", data: value };
      case 4: {
        const size = { kind: "resize", columns: 0, rows: 0 };
        for (const [f, v] of fields(value)) size[f === 1 ? "columns" : "rows"] = v;
        return size;
      }
      case 7: return { kind: "exit", status: value | 0 };
      case 8: {
        const notice = { kind: "notice", what: "", text: "" };
        for (const [f, v] of fields(value)) notice[f === 1 ? "what" : "text"] = plain.decode(v);
        return notice;
      }
      case 10: {
        const session = { kind: "session" };
        for (const [f, v] of fields(value)) if (words[f]) session[words[f]] = plain.decode(v);
        return session;
      }
    }
  }
  return { kind: "unknown" };
}
