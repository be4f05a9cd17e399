-- One-hour tiles with the partial values of count, sum, min, max and last.
SELECT user_id, time_bucket(INTERVAL 1 HOUR, ts) AS ts{partials}
FROM '{folder}/events.parquet'
GROUP BY ALL
