#!lua
-- Lists the revocations as pairs of target and moment, and removes expired ones. KEYS: the revocations.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGETALL', KEYS[1])
local revoked = {}
for index = 1, #held, 2 do
  local at, ends_at = string.match(held[index + 1], '^(-?%d+) (-?%d+)$')
  if not ends_at then
    -- Another version or program wrote the field: it stays.
  elseif tonumber(ends_at) > now then
    revoked[#revoked + 1] = {held[index], at}
  else
    redis.call('HDEL', KEYS[1], held[index])
  end
end
return revoked
