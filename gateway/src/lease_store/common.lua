-- Parts that the scripts of all algorithms share. Times are microseconds of the store's clock.
--
-- KEYS[1]: state of one quota for one client. ARGV: see `CommandArguments` in scripts.rs.

local limit = tonumber(ARGV[1])
local period = tonumber(ARGV[2])
local lease = tonumber(ARGV[3])
local gateways = tonumber(ARGV[4])
local need = tonumber(ARGV[5])
local want = tonumber(ARGV[6])
local returned = tonumber(ARGV[7])
local returned_incarnation = tonumber(ARGV[8])
local returned_slot = tonumber(ARGV[9])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Units that a gateway gets: those that requests wait for, and of those that it would like to have no more
-- than its half of an equal share of what is left.
local function units_to_grant(left)
  local share = math.floor(left / (2 * gateways))
  return math.min(left, math.max(need, math.min(want, share)))
end

local function expire_after(microseconds)
  -- A year and more: the longest duration of a quota. Larger numbers could overflow.
  local milliseconds = math.min(math.ceil(microseconds / 1000) + 1, 100000000000)
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', milliseconds))
end

-- Lua's own conversion has 14 digits.
local function text(number)
  return string.format('%.0f', number)
end

local function set(field, number)
  redis.call('HSET', KEYS[1], field, text(number))
end

-- Integers up to 2^53 are exact as doubles.
local function integer(number)
  return math.min(number, 9007199254740992)
end
