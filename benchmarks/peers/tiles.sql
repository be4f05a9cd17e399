-- One-hour tiles with the partial values of aggregates.
SELECT user_id, time_bucket(INTERVAL 1 HOUR, ts) AS ts{partials}
FROM '{events}'
GROUP BY ALL
