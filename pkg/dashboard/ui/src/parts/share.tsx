// Parts of a whole as pictures.
import type { JSX } from "preact";
import * as f from "../format";
import type { Part } from "../model/figures";

/** How many colours there are; further parts begin anew with the first. */
export const hues = 8;

const listed = (parts: Part[]): string => parts.map((p) => `${p.name} ${f.percent(p.share)}`).join(", ");

/** running returns each part with where it begins. */
function running(parts: Part[]): (Part & { from: number })[] {
  let at = 0;
  return parts.map((p) => {
    const from = at;
    at += p.share;
    return { ...p, from };
  });
}

/** Ring draws the parts clockwise from the top. */
export function Ring({ parts, label, middle, unit }: { parts: Part[]; label: string; middle: string; unit: string }): JSX.Element {
  const R = 41;
  const around = 2 * Math.PI * R;
  return (
    <svg class="ring" viewBox="0 0 100 100" role="img" aria-label={`${label}: ${listed(parts)}`}>
      <circle class="track" cx="50" cy="50" r={R} />
      {running(parts).map((p, i) => {
        const length = Math.max(0, p.share * around - (p.share < 1 ? 0.9 : 0));
        return length > 0 && (
          <circle key={p.name} class={`hue${i % hues}`} cx="50" cy="50" r={R} transform="rotate(-90 50 50)" stroke-dasharray={`${length.toFixed(3)} ${(around - length).toFixed(3)}`} stroke-dashoffset={(-p.from * around).toFixed(3)}>
            <title>{`${p.name} ${f.percent(p.share)}`}</title>
          </circle>
        );
      })}
      <text x="50" y="51">{middle}</text>
      <text x="50" y="62" class="unit">{unit}</text>
    </svg>
  );
}

/** Shares draws the parts as one bar. */
export function Shares({ parts, label }: { parts: Part[]; label: string }): JSX.Element {
  return (
    <svg class="shares" viewBox="0 0 1000 16" preserveAspectRatio="none" role="img" aria-label={`${label}: ${listed(parts)}`}>
      <rect class="track" width="1000" height="16" />
      {running(parts).map((p, i) => p.share > 0 && <rect key={p.name} class={`hue${i % hues}`} x={(p.from * 1000).toFixed(2)} width={Math.max(0, p.share * 1000 - 2).toFixed(2)} height="16" />)}
    </svg>
  );
}

/** Dot is the colour of a part, beside its name. */
export function Dot({ index }: { index: number }): JSX.Element {
  return <i class={`dot hue${index % hues}`} aria-hidden="true" />;
}

/** Bar draws one share of a whole; the figure stands beside it. */
export function Bar({ share, hue = 0 }: { share: number; hue?: number }): JSX.Element {
  return (
    <svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
      <rect class="track" width="100" height="6" />
      <rect class={`hue${hue % hues}`} width={Math.min(100, share * 100).toFixed(2)} height="6" />
    </svg>
  );
}
