-- Parts that the scripts of all algorithms share. Times are microseconds of the store's clock.
--
-- KEYS[1]: state of one quota for one client. ARGV: see `to_values` in scripts.rs.

local limit = tonumber(ARGV[1])
local period = tonumber(ARGV[2])
local short_lease = tonumber(ARGV[3])
local lease = tonumber(ARGV[4])
local gateways = tonumber(ARGV[5])
local need = tonumber(ARGV[6])
local want = tonumber(ARGV[7])
-- Report about the lease that the gateway had: its identity, and the units that it has spent since the last report, keeps
-- and returns.
local reported_incarnation = tonumber(ARGV[8])
local reported_slot = tonumber(ARGV[9])
local spent = tonumber(ARGV[10])
local kept = tonumber(ARGV[11])
local returned = tonumber(ARGV[12])
local reported = spent + kept + returned

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Calls `visit` with each instant by which units were spent, and their number. They are reported by their age.
local function each_spent(visit)
  for index = 13, #ARGV, 2 do
    visit(now - tonumber(ARGV[index]), tonumber(ARGV[index + 1]))
  end
end

-- Units that a gateway gets: those that requests wait for, and of those that it would like to have no more than half of an
-- equal share of what is left, or than half of what is left beyond the leased units.
local function units_to_grant(left, leased)
  local share = math.max(math.floor(left / (2 * gateways)), math.floor((left - leased) / 2))
  return math.min(left, math.max(need, math.min(want, share)))
end

-- A unit that a request waits for is spent at once: it needs no long lease.
local function lease_for(held)
  return held > need and lease or short_lease
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

-- Fields whose names are numbers of slots have the units in them.
local function set_slot(number, units)
  if units > 0 then
    set(text(number), units)
  else
    redis.call('HDEL', KEYS[1], text(number))
  end
end

-- Integers up to 2^53 are exact as doubles.
local function integer(number)
  return math.min(number, 9007199254740992)
end
