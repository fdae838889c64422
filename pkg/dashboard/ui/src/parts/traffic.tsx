import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as f from "../format";
import { useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { roundUpBytes } from "../model/figures";
import { Plot } from "./plot";

const choices = [60, 300, 900];

let chosen = 300; // until the page is left

/** Traffic shows the live plots of the application, or of the whole. */
export function Traffic({ app }: { app?: string }): JSX.Element {
  const { samples } = useSession();
  const [longest, setLongest] = useState(chosen);
  const choose = (seconds: number): void => setLongest((chosen = seconds));
  const common = { times: samples.times, series: samples.series(app), longest };
  return (
    <section class="traffic" aria-label={t("plot.traffic")}>
      <div class="card-head">
        <h2>{t("plot.traffic")}</h2>
        <div class="segments" role="group" aria-label={t("plot.longest")}>
          {choices.map((s) => <button key={s} type="button" aria-pressed={s === longest} onClick={() => choose(s)}>{f.span(s)}</button>)}
        </div>
      </div>
      <div class="plots">
        <Plot {...common} title={t("plot.requests")} lines={[{ field: "requests" }]} format={f.rate} />
        <Plot {...common} title={t("plot.errors")} lines={[{ field: "errors" }]} format={f.rate} />
        <Plot {...common} title={t("plot.open")} lines={[{ field: "active", name: t("plot.all") }, { field: "streams", name: t("plot.streams") }]} format={f.rate} />
        <Plot {...common} title={t("plot.latency")} lines={[{ field: "p50", name: "p50" }, { field: "p99", name: "p99" }]} format={f.ms} />
        <Plot {...common} title={t("plot.first")} lines={[{ field: "first50", name: "p50" }, { field: "first99", name: "p99" }]} format={f.ms} />
        <Plot {...common} title={t("plot.bytes")} lines={[{ field: "out", name: "↓" }, { field: "in", name: "↑" }]} format={f.throughput} top={roundUpBytes} />
      </div>
      <p class="dim small">{t("plot.quantiles")}</p>
    </section>
  );
}
