#!lua
-- A replica lives on; who else does. KEYS: the replicas that are known, the caller's membership. ARGV: the caller, what
-- its membership says, its life, the beginning of all memberships' keys. Returns replicas and what they say, in turn.
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
local members = {}
for _, replica in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  -- A key of another type is no membership: the caller is told of it by an empty text.
  local says = redis.pcall('GET', ARGV[4] .. replica)
  if type(says) == 'table' then
    says = ''
  end
  if says then
    members[#members + 1] = replica
    members[#members + 1] = says
  else
    redis.call('SREM', KEYS[1], replica)
  end
end
return members
