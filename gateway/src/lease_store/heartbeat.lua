-- Registers a gateway, counts those that are alive, and returns the key under which clients are hashed. The
-- first gateway sets it. KEYS[1]: registry of the keyspace. ARGV: id of the gateway, proposed key, lifetime
-- of a registration in microseconds.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
redis.call('HSETNX', KEYS[1], 'key', ARGV[2])
redis.call('HSET', KEYS[1], 'gateway:' .. ARGV[1], string.format('%.0f', now))
local gateways, key = 0, nil
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  if all[index] == 'key' then
    key = all[index + 1]
  elseif math.abs(now - tonumber(all[index + 1])) < tonumber(ARGV[3]) then
    gateways = gateways + 1
  else
    redis.call('HDEL', KEYS[1], all[index])
  end
end
return {key, tostring(gateways)}
