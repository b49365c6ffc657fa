-- Fixed window: `limit` units in each window of `period`, which the first lease opens. A lease ends with
-- its window. Fields: `e` end of the window, `u` units leased in it, `o` those of them that are not reported as spent. The
-- end identifies the window.

local fields = redis.call('HMGET', KEYS[1], 'e', 'u', 'o')
local window_end, used, leased = tonumber(fields[1]), tonumber(fields[2]), tonumber(fields[3])
if not window_end or now >= window_end then
  window_end, used, leased = now + period, 0, 0
end
-- The clock was set back.
window_end = math.min(window_end, now + period)
local is_reported = reported > 0 and reported_incarnation == window_end
if is_reported then
  used = math.max(used - returned, 0)
  leased = math.max(leased - spent - returned, 0)
end
local granted = units_to_grant(limit - used, leased)
used, leased = used + granted, leased + granted
if granted > 0 or is_reported then
  set('e', window_end)
  set('u', used)
  set('o', leased)
  expire_after(window_end - now)
end
local left = window_end - now
return {now, granted, limit - used, left, left, left, window_end, 0, 0, is_reported and kept or 0}
