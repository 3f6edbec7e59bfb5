#!lua
-- Who is refused, and up to which moment; who is not any more is removed. KEYS: the refused.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HGETALL', KEYS[1])
local refused = {}
for index = 1, #held, 2 do
  local at, ends_at = string.match(held[index + 1], '^(-?%d+) (-?%d+)$')
  if not ends_at then
    -- Another version's, or nobody's: left as it is.
  elseif tonumber(ends_at) > now then
    refused[#refused + 1] = {held[index], at}
  else
    redis.call('HDEL', KEYS[1], held[index])
  end
end
return refused
