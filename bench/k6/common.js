// What the scripts share: where the service is, and what is sent to it.
export const base = __ENV.BASE_URL || 'http://127.0.0.1:8080';
export const site = __ENV.SITE || 'site';

// bytes makes a body of n bytes that does not compress.
export function bytes(n) {
  const data = new Uint8Array(n);
  let x = 2463534242;
  for (let i = 0; i < n; i++) {
    x ^= x << 13; x ^= x >>> 17; x ^= x << 5;
    data[i] = x & 255;
  }
  return data.buffer;
}

export function artifact(build) {
  return `${base}/sites/${site}/artifacts/${build}`;
}
