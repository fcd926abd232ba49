-- GET of artifacts, round and round, over keep-alive connections.
--   SITE=site BUILDS=100 wrk -t2 -c64 -d10s --latency -s get.lua http://127.0.0.1:8080
-- The builds are b00000000, b00000001, ...: put.lua makes them.
local site = os.getenv("SITE") or "site"
local builds = tonumber(os.getenv("BUILDS") or "100")
local n = 0
request = function()
  n = (n + 1) % builds
  return string.format("GET /sites/%s/artifacts/b%08d HTTP/1.1\r\nHost: wrk\r\n\r\n", site, n)
end
