-- PUT of small artifacts, a new build each.
--   SITE=site SIZE=16384 wrk -t2 -c64 -d10s --latency -s put.lua http://127.0.0.1:8080
-- SPREAD=100 goes round 100 builds, which get.lua then reads.
local site = os.getenv("SITE") or "site"
local size = tonumber(os.getenv("SIZE") or "16384")
local spread = tonumber(os.getenv("SPREAD") or "0")
local threads, thread, n = 0, 0, 0
setup = function(t) t:set("thread", threads); threads = threads + 1 end
local body
init = function()
  math.randomseed(os.time() + thread)
  local t = {}
  for i = 1, size do t[i] = string.char(math.random(0, 255)) end
  body = table.concat(t)
end
request = function()
  local build = n * 16 + thread
  if spread > 0 then build = n % spread end
  n = n + 1
  return string.format("PUT /sites/%s/artifacts/b%08d HTTP/1.1\r\nHost: wrk\r\nContent-Length: %d\r\n\r\n", site, build, size) .. body
end
