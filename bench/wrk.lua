-- What wrk does in bench/wrk.py: `wrk ... -s wrk.lua URL -- CONTENT`.
-- Compares each body with CONTENT, and prints in the end what was found, as JSON.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  content = args[1]
  wrong = 0
end

function response(status, headers, body)
  if status ~= 200 or body ~= content then
    wrong = wrong + 1
  end
end

function done(summary, latency, requests)
  local wrong = 0
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
  end
  local errors = summary.errors
  local cut = errors.connect + errors.read + errors.write
  print(string.format(
    '{"requests":%d,"duration_us":%d,"wrong":%d,"cut":%d,"stalled":%d,'
    .. '"p50_us":%d,"p99_us":%d,"p999_us":%d}',
    summary.requests, summary.duration, wrong, cut, errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)
  ))
end
