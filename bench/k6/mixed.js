// A site at work, at a rate that does not wait for the answers: uploads,
// downloads, log entries and lists.
//   k6 run -e RATE=500 -e DURATION=60s mixed.js
import http from 'k6/http';
import { check } from 'k6';
import { artifact, base, bytes, site } from './common.js';

const rate = Number(__ENV.RATE || 500);
const duration = __ENV.DURATION || '60s';
const builds = 100;
const body = bytes(Number(__ENV.SIZE || 65536));

function at(exec, share) {
  return {
    executor: 'constant-arrival-rate', exec, duration, timeUnit: '1s',
    rate: Math.max(1, Math.round(rate * share)), preAllocatedVUs: 50, maxVUs: 500,
  };
}

export const options = {
  scenarios: { uploads: at('upload', 0.1), downloads: at('download', 0.7), logs: at('log', 0.15), lists: at('list', 0.05) },
  thresholds: { checks: ['rate==1'], http_req_failed: ['rate==0'] },
};

export function setup() {
  for (let i = 0; i < builds; i++) http.put(artifact(`b${i}`), body);
}

const any = () => `b${Math.floor(Math.random() * builds)}`;

export function upload() {
  check(http.put(artifact(any()), body, { tags: { name: 'upload' } }), { 'upload is 201': (a) => a.status === 201 });
}

export function download() {
  const answer = http.get(artifact(any()), { responseType: 'binary', tags: { name: 'download' } });
  check(answer, { 'download is whole': (a) => a.status === 200 && a.body.byteLength === body.byteLength });
}

export function log() {
  const entry = JSON.stringify({ build_id: any(), action: 'deploy', status: 'success' });
  check(http.post(`${base}/sites/${site}/logs`, entry, { tags: { name: 'log' } }), { 'log is 201': (a) => a.status === 201 });
}

export function list() {
  check(http.get(`${base}/sites/${site}/versions?limit=20`, { tags: { name: 'list' } }), { 'list is 200': (a) => a.status === 200 });
}
