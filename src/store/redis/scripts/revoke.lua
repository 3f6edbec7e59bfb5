#!lua
-- Stores a revocation. KEYS: the revocations. ARGV: target, moment, duration (both in ms, which a double holds exactly).
local time = redis.call('TIME')
local ends_at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
local at = tonumber(ARGV[2])
local found = redis.call('HMGET', KEYS[1], ARGV[1])[1]
if found then
  local former_at, former_end = string.match(found, '^(-?%d+) (-?%d+)$')
  if former_end then
    at = math.max(at, tonumber(former_at))
    ends_at = math.max(ends_at, tonumber(former_end))
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f', at, ends_at))
return 1
