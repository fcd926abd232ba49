-- The list of a site's versions; ETAG='"..."' asks for it only if it changed.
--   SITE=site wrk -t1 -c4 -d10s --latency -s versions.lua http://127.0.0.1:8080
local site = os.getenv("SITE") or "site"
local etag = os.getenv("ETAG")
request = function()
  local condition = etag and ("If-None-Match: " .. etag .. "\r\n") or ""
  return string.format("GET /sites/%s/versions HTTP/1.1\r\nHost: wrk\r\n%s\r\n", site, condition)
end
