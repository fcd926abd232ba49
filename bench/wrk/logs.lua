-- Log entries to BUILDS builds.
--   SITE=site BUILDS=1000 wrk -t2 -c64 -d10s --latency -s logs.lua http://127.0.0.1:8080
local site = os.getenv("SITE") or "site"
local builds = tonumber(os.getenv("BUILDS") or "1000")
local n = 0
request = function()
  n = (n + 1) % builds
  local body = string.format('{"build_id":"b%08d","action":"deploy","status":"success","metadata":{"by":"wrk"}}', n)
  return string.format("POST /sites/%s/logs HTTP/1.1\r\nHost: wrk\r\nContent-Length: %d\r\n\r\n%s", site, #body, body)
end
