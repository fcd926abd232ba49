// Uploads of new builds: k6 run -e SIZE=16384 -e VUS=64 -e DURATION=30s upload.js
import http from 'k6/http';
import { check } from 'k6';
import { artifact, bytes } from './common.js';

export const options = {
  vus: Number(__ENV.VUS || 64),
  duration: __ENV.DURATION || '30s',
  thresholds: { checks: ['rate==1'] },
};
const body = bytes(Number(__ENV.SIZE || 16384));

export default function () {
  const answer = http.put(artifact(`b${__VU}-${__ITER}`), body, { tags: { name: 'upload' } });
  check(answer, { 'is 201': (a) => a.status === 201 });
}
